"""Memory and time of association over a long stream: both have to stay as they are.

python -m benchmarks.association_stream --frames 20000 --objects 30

Objects come and go (each is seen for 300 frames or so), are missed and hidden; the tracker and the
assembler, with run-length masks, see every frame, and what ends is handed on and forgotten.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine
from idol.config import TrackerConfig
from idol.structures import FrameDetections
from idol.tracker.online import Tracker
from idol.tracker.tracks import TrackAssembler

CHART = Path("docs/internals/association-stream.svg")
_SIZE, _CATEGORIES, _STAY = 256, 40, 300
_POINTS = 100  # of the chart; memory and time are read so often


def stream(frames: int, objects: int, seed: int) -> Iterator[FrameDetections]:
    """Endless walks of so many objects, each replaced by a stranger now and then."""
    rng = np.random.default_rng(seed)
    looks = rng.normal(0, 0.5, (objects, _SIZE)).astype(np.float32)
    places = rng.uniform(0, 1000, (objects, 2))
    steps = rng.normal(0, 5, (objects, 2))
    labels = rng.integers(0, _CATEGORIES, objects)
    for t in range(frames):
        gone = np.flatnonzero(rng.random(objects) < 1 / _STAY)
        looks[gone] = rng.normal(0, 0.5, (len(gone), _SIZE))
        places[gone] = rng.uniform(0, 1000, (len(gone), 2))
        places = np.abs((places + steps) % 2000 - 1000)
        seen = np.flatnonzero(rng.random(objects) > 0.1)
        count = len(seen)
        scores = -np.sort(-rng.uniform(0.15, 0.98, count)).astype(np.float32)
        class_scores = np.zeros((count, _CATEGORIES), np.float32)
        class_scores[np.arange(count), labels[seen]] = scores
        noise = rng.normal(0, 0.1, (count, _SIZE))
        corners = places[seen] + rng.normal(0, 1, (count, 2))
        yield FrameDetections(
            frame_index=t,
            scores=torch.from_numpy(scores),
            class_scores=torch.from_numpy(class_scores),
            embeddings=torch.from_numpy((looks[seen] + noise).astype(np.float32)),
            overlaps=torch.eye(count),
            boxes=torch.from_numpy(np.concatenate([corners, corners + 50], 1)).float(),
            masks=tuple(rng.bytes(120) for _ in range(count)),
        )


def resident() -> float:
    """MiB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def run(
    config: TrackerConfig, frames: int, objects: int
) -> tuple[list[float], list[float], list[int]]:
    """MiB, milliseconds a frame (median) and instances in memory, at _POINTS moments."""
    tracker, assembler = Tracker(config), TrackAssembler(config, keep_masks=True)
    every = max(1, frames // _POINTS)
    memory: list[float] = []
    medians: list[float] = []
    alive: list[int] = []
    times: list[float] = []
    for number, frame in enumerate(stream(frames, objects, seed=0), start=1):
        start = time.perf_counter()
        assembler.add(frame, *tracker.follow(frame), tracker.alive)
        times.append(time.perf_counter() - start)
        if number % every == 0:
            gc.collect()
            memory.append(resident())
            medians.append(1e3 * statistics.median(times))
            alive.append(len(tracker.alive))
            times = []
    return memory, medians, alive


def chart(rows: dict[str, list[float]], frames: int) -> str:
    """Curves over the stream, a panel each, from 0, as an SVG file that stands alone."""
    width, height, left = 640, 130, 50
    parts = []
    for k, (name, values) in enumerate(rows.items()):
        top = 24 + k * (height + 50)
        most = 1.15 * max(values)
        points = " ".join(
            f"{left + i * width / max(1, len(values) - 1):.1f},{top + height * (1 - v / most):.1f}"
            for i, v in enumerate(values)
        )
        bottom = top + height
        parts.append(
            f'<text x="{left}" y="{top - 8}">{name}</text>'
            f'<path class="axis" d="M{left} {top}V{bottom}H{left + width}"/>'
            f'<polyline class="curve" points="{points}"/>'
            f'<text x="{left - 6}" y="{bottom}" text-anchor="end">0</text>'
            f'<text x="{left - 6}" y="{top + 10}" text-anchor="end">{most:.3g}</text>'
            f'<text x="{left}" y="{bottom + 16}">0</text>'
            f'<text x="{left + width}" y="{bottom + 16}" text-anchor="end">{frames:,} frames</text>'
        )
    total = 24 + len(rows) * (height + 50)
    style = (
        "<style>.curve{fill:none;stroke:#246;stroke-width:1.5}.axis{fill:none;stroke:#aaa}"
        "text{font:12px sans-serif;fill:#555}</style>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {total}" '
        f'width="{left + width + 20}" height="{total}">{style}{"".join(parts)}</svg>\n'
    )


def main() -> None:
    """Print one table and draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--chart", type=Path, help=f"SVG to write, such as {CHART}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.association_stream")))
    print("| tracker | frames | at | MiB | ms a frame | instances in memory |")
    print("|---|---|---|---|---|---|")
    panels: dict[str, list[float]] = {}
    for name, config in (
        ("released", TrackerConfig.released()),
        ("robust", TrackerConfig.robust()),
    ):
        memory, medians, alive = run(config, options.frames, options.objects)
        panels[f"MiB of the process, {name}"] = memory
        panels[f"milliseconds a frame, {name}"] = medians
        tenth = max(1, len(memory) // 10)
        for place, part in (("first tenth", slice(0, tenth)), ("last tenth", slice(-tenth, None))):
            middle = [statistics.median(values[part]) for values in (memory, medians, alive)]
            print(
                f"| {name} | {options.frames} | {place} | {middle[0]:.1f} | {middle[1]:.2f} | "
                f"{middle[2]:.0f} |"
            )
    if options.chart:
        options.chart.write_text(chart(panels, options.frames))


if __name__ == "__main__":
    main()
