"""A stage while processes and machines die: every run must end with the undisturbed bytes.

python -m benchmarks.chaos --runs 20
python -m benchmarks.chaos --runs 10 --stage prepare
python -m benchmarks.chaos --runs 25 --stage train
python -m benchmarks.chaos --runs 9 --stage sweep

A local cluster of three nodes runs jobs.evaluate, jobs.prepare, jobs.train or jobs.sweep again and
again, each time from nothing. At a random moment one of these is killed with SIGKILL: a detect
actor, a worker that tracks, scores, writes pairs, trains or tries a configuration, the controller
of Ray Train, a whole node (its raylet and all its workers), or the driver. Where the driver died
the same command is given once more, of jobs.train with --resume. Then results.json, results.zip and
report.json, the whole directory of pairs, the weights, the losses and the steps in MLflow, or the
report of a sweep and that no configuration was tried twice are compared with those of an
undisturbed run, all byte by byte. Of a training that may go on with fewer workers ("node, 1..2
workers") sums have other last bits: there the steps are compared. Exits with 1 if any run differs
or does not end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.processes import below
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset

_PAUSE_S = 0.4  # in every task, so that a kill can hit one
_LIMIT_S = 600.0  # of one run
_ELASTIC = "node, 1..2 workers"
_ALONE_S = 20.0  # until another node joins


@dataclass(frozen=True)
class Stage:
    """A stage under attack.

    words:   of its job, beside its input and --out
    victims: who dies -> parts of the titles of its workers
    moments: files that count as progress, of the eight videos, more or less
    again:   further words, where the driver died
    """

    words: tuple[str, ...]
    victims: Mapping[str, tuple[str, ...]]
    moments: int
    again: tuple[str, ...] = ()


STAGES = {
    "evaluate": Stage(
        ("--checkpoint", "shipped", "--set", "detect.frames_per_shard=6", "--actors", "2"),
        {
            "detect actor": ("DetectActor",),
            "track or score task": ("_track", "_measure_one", "slowly"),
            "node": (),
            "driver": (),
        },
        24,
    ),
    "prepare": Stage(
        ("--preset", "tiny", "--set", "pairs.rows_per_shard=8"),
        {"task": ("Map",), "driver": ()},
        12,
    ),
    "train": Stage(
        (
            *("--preset", "tiny", "--set", "train.pairs_per_batch=4", "--set", "train.steps=40"),
            *("--set", "train.report_every=5", "--set", "train.checkpoint_every=5"),
            *("--set", "train.keep_checkpoints=100"),  # they are counted
        ),
        {
            "worker": ("RayTrainWorker",),
            "controller": ("TrainController",),
            "driver": (),
            "node": (),
            _ELASTIC: (),
        },
        7,
        ("--resume",),
    ),
    "sweep": Stage(
        ("--search", "random", "--samples", "60", "--max-concurrent", "3"),
        {"trial": ("SweepTrial",), "node": (), "driver": ()},
        50,
    ),
}


@dataclass
class Outcome:
    """What became of one run: who was killed and when, and whether the bytes are the same."""

    victim: str
    when: str
    killed: bool
    same: bool
    seconds: float
    note: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run, kill, compare, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--stage", choices=STAGES, default="evaluate")
    parser.add_argument("--drive", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.drive:
        drive(options.stage, options.drive)
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["OMP_NUM_THREADS"] = "1"
    root = Path(__file__).resolve().parent.parent
    os.environ["PYTHONPATH"] = str(root)
    annotations = write_dataset(
        options.out / "videos", SyntheticConfig.easy(), options.videos, 95_000
    )
    with Nodes() as nodes:
        given = ["--annotations", str(annotations)]
        if options.stage == "train":
            pairs = options.out / "pairs"
            words = [*given, "--overwrite", *STAGES["prepare"].words[:2]]
            if start("prepare", words, pairs, nodes).wait(_LIMIT_S) != 0:
                sys.exit("no pairs to train on; the log is beside them")
            given = ["--pairs", str(pairs)]
        if options.stage == "sweep":
            evaluated = options.out / "evaluated"
            words = [*given, "--overwrite", *STAGES["evaluate"].words]
            if start("evaluate", words, evaluated, nodes).wait(_LIMIT_S) != 0:
                sys.exit("nothing to sweep on; the log is beside it")
            given = ["--evaluation", str(evaluated)]
        outcomes = [*run(options, given, nodes)]
    print(machine.header(machine.command("benchmarks.chaos")))
    print("| run | killed | when | same bytes | seconds | |\n|---|---|---|---|---|---|")
    for number, one in enumerate(outcomes, start=1):
        same = "yes" if one.same else "NO"
        who = one.victim if one.killed else f"({one.victim}: none was found)"
        print(f"| {number} | {who} | {one.when} | {same} | {one.seconds:.0f} | {one.note} |")
    right = sum(one.same for one in outcomes)
    hit = sum(one.killed for one in outcomes)
    print(f"\n{right} of {len(outcomes)} runs ended with the undisturbed bytes; {hit} were hit.")
    sys.exit(right < len(outcomes))


def run(options: argparse.Namespace, given: list[str], nodes: Nodes) -> Iterator[Outcome]:
    """The undisturbed run, then the disturbed ones."""
    rng = random.Random(options.seed)
    calm = options.out / "calm"
    # Always anew: other code may give other bytes.
    shutil.rmtree(calm, ignore_errors=True)
    if start(options.stage, given, calm, nodes).wait(_LIMIT_S) != 0:
        sys.exit("the undisturbed run failed; its log is beside it")
    expected = content(options.stage, calm)
    victims = tuple(STAGES[options.stage].victims)
    for number in range(options.runs):
        victim = victims[(number + options.seed) % len(victims)]
        out = options.out / f"run-{options.seed}-{number}"
        shutil.rmtree(out, ignore_errors=True)
        outcome = disturbed(options.stage, given, out, nodes, victim, rng)
        if (out / "_manifest.json").exists():
            found = content(options.stage, out)
            names = ("logged", "steps") if victim == _ELASTIC else tuple(expected)
            outcome.same = all(found[name] == expected[name] for name in names)
        print(f"{number}: {outcome}", file=sys.stderr, flush=True)
        yield outcome


def content(stage: str, out: Path) -> dict[str, Any]:
    """What has to be the same: all but how long it took."""
    if stage == "evaluate":
        names = ("results.json", "results.zip", "report.json")
        return {name: (out / name).read_bytes() for name in names}
    if stage == "train":
        curve = json.loads((out / "losses.json").read_text())
        return {
            "weights": (out / "checkpoint.safetensors").read_bytes(),
            "losses": curve,
            "steps": [step for step, _ in curve],
            "logged": logged(out),
        }
    if stage == "sweep":
        tried = [json.loads(line)["hash"] for line in (out / "ledger.jsonl").open()]
        return {
            "report": (out / "report.json").read_bytes(),
            "best": (out / "best.json").read_bytes(),
            "tried": sorted(tried),
        }
    found: dict[str, Any] = {path.name: path.read_bytes() for path in out.iterdir()}
    told = json.loads(found.pop("_manifest.json"))
    return found | {k: v for k, v in told.items() if k not in ("seconds", "checksum")}


def logged(out: Path) -> list[int]:
    """The steps that MLflow has of the newest training of this name."""
    from pipelines.report import experiment_log

    runs = experiment_log.runs(out.parent)
    (run_id, *_) = [r.info.run_id for r in runs if r.info.run_name == f"train {out.name}"]
    with experiment_log.run(out.parent, "reader", {}) as log:
        # In any order: a step that was not told may be filled in after those that came since.
        return sorted(point.step for point in log.client.get_metric_history(run_id, "loss"))


def disturbed(
    stage: str, given: list[str], out: Path, nodes: Nodes, victim: str, rng: random.Random
) -> Outcome:
    """One run with one death."""
    began = time.monotonic()
    more = ("--workers", "1..2") if victim == _ELASTIC else ()
    process = start(stage, given, out, nodes, more)
    # Detect actors die while there are shards to come, the others at any time until all is done.
    soon = victim == "detect actor" or stage == "prepare"
    done = rng.randrange(0, 8 if victim == "detect actor" else STAGES[stage].moments)
    wait_for(lambda: sum(progress(out)) >= done or process.poll() is not None)
    time.sleep(rng.uniform(0.0, 1.0 if soon else 4.0))
    when = "after {} shards, {} tracked".format(*progress(out))
    if stage in ("train", "sweep"):
        told = "checkpoints" if stage == "train" else "results"
        when = f"after {progress(out)[0]} {told}"
    killed = kill(STAGES[stage].victims[victim], victim, process, nodes, rng)
    note = ""
    try:
        status = process.wait(_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return Outcome(victim, when, killed, False, time.monotonic() - began, "did not end")
    if status != 0 and victim == "driver":
        status = start(stage, given, out, nodes, STAGES[stage].again).wait(_LIMIT_S)
        note = "the same command again"
    if status != 0:
        note = f"ended with status {status}"
    return Outcome(victim, when, killed, False, time.monotonic() - began, note)


def kill(
    titles: Sequence[str],
    victim: str,
    process: subprocess.Popen[bytes],
    nodes: Nodes,
    rng: random.Random,
) -> bool:
    """Kill one; False where there was none (the run was over, or had not begun)."""
    if process.poll() is not None:
        return False
    if victim == "driver":
        process.send_signal(signal.SIGKILL)
        return True
    if victim in ("node", _ELASTIC):
        nodes.lose_one(rng, _ALONE_S if victim == _ELASTIC else 0.0)
        return True
    found: list[int] = []

    def look() -> bool:
        found[:] = [pid for pid, title in nodes.workers() if any(t in title for t in titles)]
        return bool(found) or process.poll() is not None

    wait_for(look, limit_s=60.0)
    if not found:
        return False
    os.kill(rng.choice(found), signal.SIGKILL)
    return True


def start(
    stage: str, given: list[str], out: Path, nodes: Nodes, more: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """The job, as a process of its own that joins the cluster."""
    job = [*given, "--out", str(out), *STAGES[stage].words, *more]
    module = [sys.executable, "-m", "benchmarks.chaos", "--stage", stage]
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*module, "--drive", json.dumps(job)],
            stdout=log,
            stderr=log,
            env={**os.environ, "RAY_ADDRESS": nodes.address},
        )


def drive(stage: str, words: Sequence[str]) -> None:
    """The job itself; every video is a Ray task, as on a large set, and takes its time."""
    import ray

    from jobs import evaluate, prepare, sweep, train
    from pipelines import cluster
    from pipelines.stages import pairs, track

    # Joined by hand, for the code is on PYTHONPATH: as a working_dir it would be unpacked anew by
    # each node that joins, on this one machine over the copy that the other nodes' workers run in.
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    track.FEW_FRAMES = 0
    tasks = cluster.tasks

    def slow_tasks(function: Any, shared: Any, items: Any, **how: Any) -> Any:
        return tasks(slowly, (function, shared), items, **how)

    cluster.tasks = slow_tasks
    pairs.write_shard = slow_shard
    job = {"evaluate": evaluate, "prepare": prepare, "train": train, "sweep": sweep}[stage]
    job.main(json.loads(words[0]))


def slowly(shared: tuple[Callable[[Any, Any], Any], Any], item: Any) -> Any:
    """A task with a pause before it."""
    time.sleep(_PAUSE_S)
    return shared[0](shared[1], item)


def slow_shard(item: Mapping[str, Any], **shared: Any) -> dict[str, Any]:
    """A shard of pairs, with a pause before it is written."""
    from pipelines.stages import pairs

    time.sleep(_PAUSE_S)
    return pairs.write_shard(item, **shared)


class Nodes:
    """A cluster of three nodes on this machine: a head for the driver, two that may be lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        self.address: str = self._cluster.address
        self._others = [self._cluster.add_node(num_cpus=2) for _ in range(2)]

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._cluster.shutdown()

    def lose_one(self, rng: random.Random, alone_s: float) -> None:
        """SIGKILL a node's processes; another one joins in its place, after so many seconds."""
        lost = self._others.pop(rng.randrange(len(self._others)))
        self._cluster.remove_node(lost, allow_graceful=False)
        time.sleep(alone_s)
        self._others.append(self._cluster.add_node(num_cpus=2))

    def workers(self) -> list[tuple[int, str]]:
        """(pid, title) of the worker processes below the raylets of this cluster."""
        return [
            (process.pid, process.title)
            for process in below(os.getpid())
            if process.title.startswith("ray::")
        ]


def progress(out: Path) -> tuple[int, int]:
    """Finished shards, and videos tracked, ahead of the last shard or after it."""
    tracked = [*out.glob("ahead/video-*.parquet"), *out.glob("tracks/shard-*.parquet")]
    shards = [
        *out.glob("detections/shard-*.parquet"),
        *out.glob("shard-*.parquet"),
        *out.glob("checkpoints/step-*/losses.json"),
    ]
    ledger = out / "ledger.jsonl"
    results = ledger.read_bytes().count(b"\n") if ledger.exists() else 0
    return len(shards) + results, len(tracked)


def wait_for(condition: Callable[[], bool], limit_s: float = 120.0) -> None:
    """Wait until the condition holds, or the time is over."""
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


if __name__ == "__main__":
    main()
