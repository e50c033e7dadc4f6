"""Where a stage runs: a Ray to join where there is one, else one of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import gauges
from pipelines.errors import PipelineError

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the four rooms: what a worker needs on its path."""

_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set for the driver by `ray job submit` alone
SUBMITTED_FROM = "IDOL_SUBMITTED_FROM"
"""Variable of a job that `pipelines.submit` sends: the folder in which the command was given."""
_MIN_CPUS = 4
"""Logical CPUs of an embedded Ray, at least: a pool of two actors, and room for what feeds them.
An actor pool that holds every CPU starves the tasks before it and hangs in silence."""

_TASKS_PER_CPU = 2  # one runs, one waits
VIDEOS_PER_TASK, TASKS_AT_LEAST = 16, 8  # of videos: at most, and for each CPU, where there are
_ANSWER_S = 5.0  # Ray itself tries for two minutes
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # HTTP/2: an empty SETTINGS frame; its type is 4
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS  # a server answers with its own
_SOCKET_PATH = 107  # characters that Linux takes
_SESSION_PATH = len("/ray/session_2026-01-02_03-04-05_123456_4194304/sockets/plasma_store")
_END = object()

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def session(num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the `with` block.

    Joins the Ray that this process already has, or that of `kept`, else the cluster of `ray job
    submit` or RAY_ADDRESS. Without any, starts a Ray of our own and stops it at the end of the
    block; never joins another Ray that happens to run on the machine.

    num_cpus: logical CPUs of our own Ray; default: those of the machine, at least 4
    Raises: PipelineError: no Ray answers at RAY_ADDRESS, or no folder is short enough for sockets.
    """
    if _initialised():
        yield
    elif _kept:
        _kept[-1]()
        yield
    else:
        with _connected(num_cpus):
            yield


@contextlib.contextmanager
def kept(num_cpus: int | None = None) -> Iterator[None]:
    """Let all sessions inside the `with` block share one Ray, which the first of them starts.

    So whatever a stage checks before it needs Ray is said at once. Arguments and Raises as of
    session.
    """
    if not _initialised():
        _check_answer()
    with contextlib.ExitStack() as stack:
        _kept.append(lambda: stack.enter_context(_connected(num_cpus)))
        try:
            yield
        finally:
            _kept.pop()


_kept: list[Callable[[], None]] = []  # how to start the Ray of each `kept` block


@contextlib.contextmanager
def _connected(num_cpus: int | None) -> Iterator[None]:
    ours = own()
    if ours:
        _once_per_process()
    _check_answer()
    with environment(_embedded_environment() if ours else {}):
        # Imported here: Ray reads its environment once, when it is imported.
        import ray

        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if ours:
            options |= {
                "address": "local",
                "num_cpus": num_cpus or max(_MIN_CPUS, os.cpu_count() or 1),
                "include_dashboard": False,  # seconds at each start, and nobody knows its port
                "_temp_dir": _scratch(),
            }
        elif not submitted():
            # `ray job submit --working-dir` has already sent the code; sending it again conflicts.
            options["runtime_env"] = {"working_dir": str(ROOT)}
        try:
            ray.init(**options)
        except (RuntimeError, OSError, ray.exceptions.RayError) as error:
            there = os.environ.get("RAY_ADDRESS", "the cluster")
            what = "Ray does not start" if ours else f"Ray at {there} does not take us"
            raise PipelineError(f"{what}: {' '.join(str(error).split())[:300]}") from error
        try:
            yield
        finally:
            ray.shutdown()


@dataclass(frozen=True, slots=True)
class Pool:
    """How many actors a stage has: at least, and at most where there is work and room for more."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"a pool has 1 actor or more, and its upper bound is not below its lower one, got "
                f"{self.least}..{self.most}. Write 4, or 1..8."
            )

    @classmethod
    def of(cls, size: Pool | int | str) -> Pool:
        """A pool from 4 or "4" (fixed), or "1..8" (grows and shrinks); ValueError: no such size."""
        if isinstance(size, Pool):
            return size
        low, dots, high = str(size).partition("..")
        try:
            least, most = int(low), int(high if dots else low)
        except ValueError:
            raise ValueError(f"{size!r} is no number of actors. Write 4, or 1..8.") from None
        return cls(least, most)

    def within(self, most: int) -> Pool:
        """This pool with no more actors than there is work for."""
        return Pool(min(self.least, most), min(self.most, most))


def tasks(
    function: Callable[[Any, Any], Any], shared: Any, items: Iterable[Any]
) -> Iterator[tuple[Any, Any]]:
    """Run function(shared, item) for every item on the connected Ray; (item, result) as they end.

    A bounded number is in flight, so that neither results nor arguments pile up. An item whose
    process or machine dies is done again, up to three times. Shared goes to every machine once.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=3)(function)
    stored_once = ray.put(shared)
    waiting = iter(items)
    running: dict[Any, Any] = {}
    while True:
        # Each time, because a cluster that grows has more CPUs later.
        window = _TASKS_PER_CPU * cpus()
        while len(running) < window and (item := next(waiting, _END)) is not _END:
            running[task.remote(stored_once, item)] = item
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            yield running.pop(reference), ray.get(reference)


def videos(
    function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any], what: str, here: bool
) -> Iterator[tuple[Any, Any]]:
    """`tasks`, in a session and under a progress bar `what`, of items that are a video each.

    A task has several where there are many, for handing one out costs the driver milliseconds
    (benchmarks/cluster_scale.py).

    items: those of the most work first
    here:  no Ray, one item after the other in this process: for work of a few seconds
    """
    with progress(len(items), what, "videos") as bar, contextlib.ExitStack() as stack:
        done: Iterator[tuple[Any, Any]]
        if here:
            done = ((item, function(shared, item)) for item in items)
        else:
            stack.enter_context(session())
            size = videos_per_task(len(items), cpus())
            parts = (items[first : first + size] for first in range(0, len(items), size))
            made = tasks(_each, (function, shared), parts)
            done = (pair for part in made for pair in zip(*part, strict=True))
        for pair in done:
            yield pair
            bar.update()


def videos_per_task(count: int, slots: int) -> int:
    """How many of so many videos a task has, on so many CPUs: few, so that none waits for one."""
    return max(1, min(VIDEOS_PER_TASK, count // (TASKS_AT_LEAST * slots)))


def _each(known: tuple[Callable[[Any, Any], Any], Any], items: Sequence[Any]) -> list[Any]:
    """The task of several items; known: the function, and what its calls share."""
    function, shared = known
    return [function(shared, item) for item in items]


def set_up_data() -> None:
    """Have Ray Data leave bar and log to us."""
    import ray.data

    # Our bars count shards or frames; Ray's would write over them, and its log tells of every run.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def gpus() -> int:
    """Number of GPUs of the connected Ray."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """Number of logical CPUs of the connected Ray; 1 where a cluster that grows has none yet."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 0)))


def progress(total: int, what: str, unit: str) -> Any:
    """A progress bar on stderr, so that stdout stays for the job's one JSON line."""
    # Below half a second of work a bar is only noise.
    return gauges.Bar(total=total, desc=what, unit=unit, delay=0.5, dynamic_ncols=True)


def submitted() -> bool:
    """Whether this process is a job that a cluster was given: its folder is a copy of the code."""
    return bool(os.environ.get(_SUBMITTED))


def _initialised() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _check_answer() -> None:
    """Raise PipelineError unless a Ray answers at RAY_ADDRESS within seconds, where it is set."""
    address = os.environ.get("RAY_ADDRESS")
    if not address or submitted():
        return
    from ray._private.services import canonicalize_bootstrap_address

    try:
        # What Ray itself will take for "auto"; None: it will start one.
        place = address.removeprefix("ray://")
        place = place if place != address else canonicalize_bootstrap_address(address)
        if place is None or os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        host, _, port = place.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S) as link:
            link.sendall(_GREETING)
            if link.recv(len(_SETTINGS))[3:4] != _SETTINGS[3:4]:
                raise ConnectionError("what answers there speaks no gRPC")
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"no Ray answers at {address} (RAY_ADDRESS). Start one there, or unset RAY_ADDRESS to "
            "use this machine."
        ) from error


def _scratch() -> str | None:
    """Where our own Ray keeps its sockets; None: where it does by itself, as its path fits."""
    own = os.environ.get("RAY_TMPDIR")
    place = own or os.environ.get("TMPDIR") or "/tmp"
    longest = _SOCKET_PATH - _SESSION_PATH
    if len(os.fsencode(os.path.abspath(place))) <= longest:
        return None
    if own is None and os.access("/tmp", os.W_OK):
        return "/tmp/ray"
    raise PipelineError(
        f"{place} is too long for Ray's sockets, whose paths may have {_SOCKET_PATH} characters. "
        f"Set RAY_TMPDIR to a folder with a path of at most {longest}, such as /tmp."
    )


def own() -> bool:
    """Whether Ray is one of our own: nothing says which cluster to join."""
    return not os.environ.get("RAY_ADDRESS") and not submitted()


def _embedded_environment() -> dict[str, str]:
    """What our own Ray and its workers inherit from this process."""
    inherited = os.environ.get("PYTHONPATH")
    return {
        # Workers import the rooms from any folder. By the environment, because a runtime_env costs
        # a second for each worker.
        "PYTHONPATH": f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT),
        # One process per core is faster than one process with many threads (measured 1.5 times),
        # and many processes with many threads each are slower by multiples.
        "OMP_NUM_THREADS": "1",
        # glibc gives every large tensor back to the kernel and faults it in again at the next use:
        # 6,000 page faults, 5 to 9 % of a tiny training step (measured). Keep up to 1 GiB instead.
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
    }


def _once_per_process() -> None:
    """Set what Ray reads when it is imported and keeps for the life of the process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the next default; 2.60 warns
    if not os.environ.get("RAY_AUTH_MODE") and not os.environ.get("RAY_AUTH_TOKEN"):
        # A token of this process: without one, every user of the machine could run code here, and
        # Ray would write one into the home directory, which may be read-only. It stays for the
        # next session of this process, because Ray caches it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
