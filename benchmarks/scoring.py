"""How long scoring takes, and how much memory: jobs.score's work on sets of generated masks.

python -m benchmarks.scoring                     the sets that the official evaluator was timed on
python -m benchmarks.scoring --sets large        300 videos, 30 frames, 20 predictions

The official evaluator (ytvoseval, one process) is not run here: its times are those measured once
on two cores of the same kind of machine for sets of the same numbers. Each set is scored in a
process of its own; time counts from the files to the scores, without Python's and torch's start.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine

SIZE = (360, 640)
CLASSES = 40


class Set(NamedTuple):
    """Numbers of a generated set; official: seconds of the official evaluator, where measured."""

    videos: int
    frames: int
    predictions: int
    roughness: float
    official: float | None


SETS = {
    "ellipses": Set(100, 20, 10, 0.0, 0.500),
    "jagged": Set(100, 20, 10, 0.35, 1.660),
    "crowded": Set(40, 60, 30, 0.35, 6.500),
    "large": Set(300, 30, 20, 0.2, None),
}


class Painter:
    """Ellipses whose outline is frayed by noise: the wider the band, the longer the RLE."""

    def __init__(self, seed: int, roughness: float) -> None:
        self.random = np.random.default_rng(seed)
        self.roughness = roughness
        self.noise = self.random.standard_normal((2 * SIZE[0], 2 * SIZE[1]), np.float32)
        self.rows, self.columns = (np.arange(side, dtype=np.float32) for side in SIZE)

    def paint(self, y: float, x: float, height: float, width: float) -> NDArray[np.uint8]:
        """One mask (360, 640) around a centre, with half sides in pixels."""
        distance = ((self.rows - y) / height)[:, None] ** 2 + ((self.columns - x) / width) ** 2
        if self.roughness:
            top, left = self.random.integers(0, SIZE[0]), self.random.integers(0, SIZE[1])
            distance += self.roughness * self.noise[top:, left:][: SIZE[0], : SIZE[1]]
        return (distance < 1).astype(np.uint8)


def generate(folder: Path, numbers: Set, seed: int = 7) -> None:
    """Write truth.json and results.json; three in four predictions follow a true instance."""
    from pycocotools import mask as coco_mask

    painter = Painter(seed, numbers.roughness)
    random = painter.random

    def track(path: NDArray[np.float64], jitter: float) -> list[dict[str, Any]]:
        pictures = np.empty((*SIZE, numbers.frames), np.uint8, order="F")
        for t, place in enumerate(path):
            y, x, height, width = place + jitter * random.standard_normal(4)
            pictures[..., t] = painter.paint(y, x, max(height, 4), max(width, 4))
        return [
            {"size": list(SIZE), "counts": mask["counts"].decode()}
            for mask in coco_mask.encode(pictures)
        ]

    def path() -> NDArray[np.float64]:
        start = random.uniform([60, 80, 20, 25], [300, 560, 70, 110])
        steps = np.arange(numbers.frames)[:, None] * random.uniform(-2, 2, 4) * [1, 1, 0.1, 0.1]
        return np.asarray(start + steps)

    document: dict[str, Any] = {
        "categories": [{"id": c + 1, "name": f"c{c + 1}"} for c in range(CLASSES)],
        "videos": [],
        "annotations": [],
    }
    with (folder / "results.json").open("w", encoding="ascii") as file:
        file.write("[")
        first = True
        for video in range(1, numbers.videos + 1):
            names = [f"{video}/{t:05d}.jpg" for t in range(numbers.frames)]
            document["videos"].append(
                {"id": video, "height": SIZE[0], "width": SIZE[1], "length": numbers.frames}
                | {"file_names": names}
            )
            category = int(random.integers(1, CLASSES + 1))
            paths = [path() for _ in range(max(2, numbers.predictions // 4))]
            for one in paths:
                masks = track(one, 0)
                areas = [int(area) for area in coco_mask.area(masks)]
                document["annotations"].append(
                    {"id": len(document["annotations"]) + 1, "video_id": video, "iscrowd": 0}
                    | {"category_id": category, "segmentations": masks, "areas": areas}
                )
            for n in range(numbers.predictions):
                followed = paths[n % len(paths)] if n % 4 else path()
                entry = {
                    "video_id": video,
                    "category_id": category,
                    "score": float(random.random()),
                }
                entry["segmentations"] = track(followed, 3)
                file.write(("" if first else ", ") + json.dumps(entry))
                first = False
        file.write("]")
    (folder / "truth.json").write_text(json.dumps(document))


def score(folder: Path, workers: int) -> dict[str, float]:
    """Seconds, peak MiB and AP of scoring a set in this process and those it starts."""
    logging.disable(logging.WARNING)
    from idol import truth
    from idol.config import AnalysisConfig
    from pipelines import score as scoring

    before = _peak(resource.RUSAGE_SELF)
    started = time.perf_counter()
    found = scoring.run(
        truth.read(folder / "truth.json"),
        {"results": folder / "results.json"},
        scoring.Analyses(config=AnalysisConfig(resamples=0)),
        workers=workers,
    )
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "before": before,
        "peak": max(_peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN)),
        "AP": found.methods[0].metrics.stats["AP"],
    }


def _peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 2**10


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets", nargs="+", choices=tuple(SETS), default=["ellipses", "jagged", "crowded"]
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.folder is not None:
        print(json.dumps(score(options.folder, options.workers[0])))
        return
    print(machine.header(f"python -m benchmarks.scoring {' '.join(sys.argv[1:])}", "cpu"))
    print(
        "| set | videos × frames × predictions | results, MB | processes | seconds | official "
        "| ratio | MiB above the start, a process | AP |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.sets:
        numbers = SETS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            generate(folder, numbers)
            size = (folder / "results.json").stat().st_size / 1e6
            for workers in options.workers:
                runs = [_apart(folder, workers) for _ in range(options.rounds)]
                best = min(runs, key=lambda run: run["seconds"])
                official = f"{numbers.official:.2f}" if numbers.official else "–"
                ratio = f"{numbers.official / best['seconds']:.1f}" if numbers.official else "–"
                print(
                    f"| {name} | {numbers.videos} × {numbers.frames} × {numbers.predictions} "
                    f"| {size:.0f} | {workers} | {best['seconds']:.2f} | {official} | {ratio} "
                    f"| {best['peak'] - best['before']:.0f} | {best['AP']:.4f} |",
                    flush=True,
                )


def _apart(folder: Path, workers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scoring", "--folder", str(folder)]
    command += ["--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
