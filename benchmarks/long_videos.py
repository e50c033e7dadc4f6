"""Evaluation of ever longer videos: what every process holds at its peak, and seconds a frame.

python -m benchmarks.long_videos

Each length is one video of its own, detected in chunks by one actor, tracked and scored in a single
pass. Memory is what a process has for itself (RssAnon: without files and the shared object store).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import machine
from benchmarks.processes import Process, below
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset

_EVERY_S = 0.2  # memory is looked at so often
_ROLES = ("driver", "detect actor", "track and score task")


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-long"))
    options = parser.parse_args(argv)
    print(machine.header(machine.command("benchmarks.long_videos")))
    print(
        "| frames | driver, MiB | detect actor, MiB | task, MiB | detect, s | track, s | "
        "all, s | ms a frame |\n|---|---|---|---|---|---|---|---|"
    )
    for count in options.frames:
        config = replace(SyntheticConfig.easy(), length=(count, count))
        annotations = write_dataset(options.out / f"video-{count}", config, 1, 97_000)
        out = options.out / f"evaluate-{count}"
        shutil.rmtree(out, ignore_errors=True)
        peaks, seconds = evaluate(annotations, out)
        parts = [
            json.loads((out / name / "_manifest.json").read_text())["seconds"]
            for name in ("detections", "tracks")
        ]
        memory = " | ".join(f"{peaks[role]:.0f}" if role in peaks else "–" for role in _ROLES)
        print(
            f"| {count} | {memory} | {parts[0]:.1f} | {parts[1]:.1f} | {seconds:.1f} | "
            f"{1000 * seconds / count:.1f} |",
            flush=True,
        )


def evaluate(annotations: Path, out: Path) -> tuple[dict[str, float], float]:
    """Run the job; peak MiB of each role, and seconds of the whole."""
    # Every video a task of its own, as on a large set: few frames would be done by the driver.
    code = (
        "import sys; from pipelines.stages import track; track.FEW_FRAMES = 0; "
        "from jobs import evaluate; evaluate.main(sys.argv[1:])"
    )
    began = time.monotonic()
    job = subprocess.Popen(
        [
            *(sys.executable, "-c", code, "--annotations", str(annotations)),
            *("--checkpoint", "shipped", "--out", str(out), "--actors", "1"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peaks: dict[str, float] = {}
    while job.poll() is None:
        for process in below(job.pid):
            role = _role(process, job.pid)
            if role is not None:
                peaks[role] = max(peaks.get(role, 0.0), process.memory())
        time.sleep(_EVERY_S)
    if job.returncode:
        sys.exit(f"the job ended with status {job.returncode}")
    return peaks, time.monotonic() - began


def _role(process: Process, driver: int) -> str | None:
    if process.pid == driver:
        return "driver"
    if "DetectActor" in process.title:
        return "detect actor"
    if "ray::_each" in process.title:
        return "track and score task"
    return None


if __name__ == "__main__":
    main()
