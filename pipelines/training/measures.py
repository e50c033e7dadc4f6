"""What a worker measures of itself: its speed, its machine, and where its time goes."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.storage import paths
from pipelines.storage.paths import AnyPath

TRACE = "trace.json.gz"
"""What torch's profiler has recorded: for chrome://tracing or https://ui.perfetto.dev."""
_WAIT, _WARM_UP = 3, 2  # steps before those that are recorded
_GB = 1e9


class Speed:
    """How fast training is since this was made, and for what share of the time it waits."""

    def __init__(self) -> None:
        self._started, self._worked = time.perf_counter(), time.process_time()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def measured(self, images: int) -> dict[str, float]:
        """images_per_second; data_wait_share in 0..1; cpus: processor seconds a second, of this
        process. images: of all workers, until now"""
        passed = time.perf_counter() - self._started
        return {
            "images_per_second": images / passed,
            "data_wait_share": self._waited / passed,
            "cpus": (time.process_time() - self._worked) / passed,
        }


def machine(device: torch.device) -> dict[str, float]:
    """memory_gb: of this process at most so far; on a GPU also gpu_memory_gb and, where NVIDIA's
    library answers, gpu_utilisation in 0..1 now."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    found = {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GB}
    if device.type == "cuda":
        found["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / _GB
        with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # of nvidia-ml-py
            found["gpu_utilisation"] = torch.cuda.utilization(device) / 100
    return found


@contextlib.contextmanager
def profiled(steps: int, rank: int, out: AnyPath) -> Iterator[Callable[[], None]]:
    """Record steps of the first worker into TRACE; what is given is called after each step.

    steps: how many; 0: none
    """
    if not steps or rank:
        yield lambda: None
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    plan = torch.profiler.schedule(wait=_WAIT, warmup=_WARM_UP, active=steps, repeat=1)
    with torch.profiler.profile(
        activities=activities, schedule=plan, on_trace_ready=_exported(out)
    ) as profiler:
        yield profiler.step


def _exported(out: AnyPath) -> Callable[[Any], None]:
    def export(profiler: Any) -> None:
        with paths.whole_file(out / TRACE) as temporary:
            # The profiler compresses by the name's end, which a temporary name may lack.
            written = Path(f"{temporary}.json.gz")
            profiler.export_chrome_trace(str(written))
            written.replace(temporary)

    return export
