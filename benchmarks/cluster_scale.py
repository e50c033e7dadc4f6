"""An evaluation and a prepare of 100,000 videos on up to 64 nodes, simulated: what stops scaling.

python -m benchmarks.cluster_scale

First the control plane is measured here: what the driver spends on a task and on a call of an actor
that do nothing, on a real Ray; and on each shard of an output, on a disk and in a bucket of an S3
server on loopback: finding out which are missing (once for all, and one by one, as it was) and
reading their footers. Then jobs are simulated as discrete events: the driver is one process that
hands out a piece of work, or takes a result, in the measured time; pieces take the time of
pipelines/slopes.json; the rest of a job is the driver's alone. A node has 8 CPUs and one GPU.
"""

from __future__ import annotations

import argparse
import heapq
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import machine
from idol.ytvis.videos import Reject
from pipelines import actors, cluster, plan
from pipelines.storage import claims, paths, tables
from pipelines.storage.paths import AnyPath
from tests import object_storage

NODES = (1, 4, 16, 64)
CPUS = 8
_FRAMES_PER_SHARD, _ROWS_PER_SHARD = 64, 512


@dataclass(frozen=True)
class Costs:
    """Seconds of the driver: for a task, an actor's call, a shard looked for, and its footer."""

    task: float
    call: float
    missing: float
    footer: float


@dataclass(frozen=True)
class Part:
    """A part of a job: how long it takes, and how long the driver is busy in it."""

    name: str
    seconds: float
    driver: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--frames", type=float, default=28.0, help="of a video, on average")
    parser.add_argument("--tasks", type=int, default=3000)
    parser.add_argument("--shards", type=int, default=1000)
    options = parser.parse_args(argv)
    print(machine.header(machine.command("benchmarks.cluster_scale")))
    costs = measured(options.tasks, options.shards)
    rng = np.random.default_rng(0)
    drawn = rng.gamma(2.0, options.frames / 2.0, options.videos).round().clip(2)
    for title, job in (("evaluate", evaluated), ("prepare", prepared)):
        print(f"\n{title} of {options.videos} videos, {int(drawn.sum())} frames\n")
        print("| nodes | seconds | of them | driver busy | efficiency |\n|---|---|---|---|---|")
        alone = 0.0
        for nodes in NODES:
            parts = job(drawn, nodes, costs)
            whole = sum(part.seconds for part in parts)
            alone = alone or whole
            told = ", ".join(f"{part.name} {part.seconds:.0f}" for part in parts)
            busy = sum(part.driver for part in parts) / whole
            share = alone / (nodes * whole)
            print(f"| {nodes} | {whole:.0f} | {told} | {busy:.0%} | {share:.0%} |")


def measured(tasks: int, shards: int) -> Costs:
    """Print what the control plane costs here; the slower storage of the two counts."""
    rows: dict[str, list[float]] = {}
    with cluster.session(2):
        list(cluster.tasks(nothing, None, range(50)))  # processes start
        per_task = timed(lambda: list(cluster.tasks(nothing, None, range(tasks)))) / tasks
        pool = cluster.Pool(1, 1)
        some = timed(lambda: list(actors.work(Nothing, (), range(10), pool, 0.0)))
        many = timed(lambda: list(actors.work(Nothing, (), range(10 + tasks), pool, 0.0)))
    with tempfile.TemporaryDirectory() as folder, object_storage.server() as s3:
        os.environ.update(s3.environment)
        places = {"disk": folder, "bucket": f"s3://{object_storage.BUCKET}/scale"}
        for name, place in places.items():
            rows[name] = [seconds / shards for seconds in storage(paths.at(place), shards)]
    print(f"The driver spends {1e3 * per_task:.2f} ms on a task and ", end="")
    print(f"{1e3 * (many - some) / tasks:.2f} ms on an actor's call.\n")
    print("| ms a shard | which are missing | one by one | footers | one by one |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{1e3 * seconds:.3f}' for seconds in row)} |")
    missing, _, footer, _ = rows["bucket"]
    return Costs(per_task, (many - some) / tasks, missing, footer)


def storage(place: AnyPath, shards: int) -> Iterator[float]:
    """Seconds for all shards: missing, one by one; footers, one by one."""
    table = pa.table({"x": [1]})
    output = claims.Output(place, "scale", {}, "", "", "")
    for number in range(shards):
        tables.commit(table, output.shard(number), rejects=[Reject(1, "a", "b")])
    yield timed(lambda: output.missing(shards))
    yield timed(lambda: [output.shard(number).exists() for number in range(shards)])
    yield timed(lambda: output.rejects(shards))
    yield timed(lambda: [tables.shard_footer(output.shard(number)) for number in range(shards)])


def evaluated(lengths: Any, nodes: int, costs: Costs) -> list[Part]:
    """Detect on GPUs, track and score on CPUs, then what the driver does by itself."""
    known = plan.slopes()
    shards = int(np.ceil(lengths.sum() / _FRAMES_PER_SHARD))
    frame = known["detect"]["gpu fast"]["resnet50"]["frame_s"]
    start = known["detect"]["start_s"]
    detect = simulate([frame * _FRAMES_PER_SHARD] * shards, nodes, nodes, costs.call, start)
    parts = [Part("detect", *detect), looked("detect's shards", shards, costs)]
    slots = CPUS * nodes
    size = cluster.videos_per_task(len(lengths), slots)
    longest_first = np.sort(lengths)[::-1]
    frames = np.add.reduceat(longest_first, np.arange(0, len(lengths), size))
    for name in ("track", "score"):
        durations = frames * known[name]["frame_s"]
        parts.append(Part(name, *simulate(durations, slots, 2 * slots, costs.task, 0.0)))
    # Each file of tracks is read once, for the results.
    read = costs.footer * len(lengths)
    tracks = looked("tracks", len(lengths), costs)
    parts.append(Part("tracks", tracks.seconds + read, tracks.driver + read))
    rest = known["score"]["start_s"] + known["score"]["video_s"] * len(lengths)
    return [*parts, Part("results and page", rest, rest)]


def prepared(lengths: Any, nodes: int, costs: Costs) -> list[Part]:
    """Shards of frames on CPUs, two tasks on each."""
    known = plan.slopes()["prepare"]
    shards = int(np.ceil(lengths.sum() / _ROWS_PER_SHARD))
    slots = 2 * CPUS * nodes
    each = 2 * known["frame_cpu_s"] * _ROWS_PER_SHARD
    made = simulate([each] * shards, slots, 2 * slots, costs.task, known["start_s"])
    return [Part("shards", *made), looked("listings", shards, costs)]


def looked(name: str, shards: int, costs: Costs) -> Part:
    """Twice which are missing, at the begin and the end; what footers say has come with the
    results of the tasks."""
    seconds = shards * 2 * costs.missing
    return Part(name, seconds, seconds)


def simulate(
    durations: Sequence[float], slots: int, window: int, driver: float, start: float
) -> tuple[float, float]:
    """Seconds until all is done, and those in which the driver is busy.

    window: pieces that are handed out at once; what finds no free slot waits for one
    driver: seconds for each piece, half to hand it out and half to take its result
    """
    now, handed, taken = start, 0, 0
    ends: list[float] = []  # of what was handed out and not taken
    free = [start] * slots  # from when on
    while taken < len(durations):
        if handed < len(durations) and handed - taken < window:
            now += driver / 2
            end = max(now, heapq.heappop(free)) + durations[handed]
            heapq.heappush(free, end)
            heapq.heappush(ends, end)
            handed += 1
        else:
            now = max(now, heapq.heappop(ends)) + driver / 2
            taken += 1
    return now, driver * len(durations)


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def nothing(shared: Any, item: int) -> int:
    """A task."""
    return item


class Nothing:
    """An actor."""

    def work(self, item: int) -> int:
        """A call."""
        return item


if __name__ == "__main__":
    main()
