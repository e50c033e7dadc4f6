"""How long scoring takes, and how much memory: jobs.score beside the official algorithm.

python -m benchmarks.scoring                     three sets of the official timings' sizes
python -m benchmarks.scoring --sets large        300 videos, 30 frames, 20 predictions
python -m benchmarks.scoring --growth            memory at one and at ten times the ellipses
python -m benchmarks.scoring --sets --given NAME TRUTH.json RESULTS.json SECONDS
                                                 files at hand, and the official one's time for them

The official evaluator (ytvoseval, one process) cannot be shipped; its algorithm is written anew in
benchmarks.plain_evaluator, and both are run on the same files, each time in a process of its own.
Seconds count from the files to the scores, without the start of Python, libraries and compiled
code; "command" is all of `python -m jobs.score`, by the clock.
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
    """Numbers of a generated set."""

    videos: int
    frames: int
    predictions: int
    roughness: float


SETS = {
    "ellipses": Set(100, 20, 10, 0.0),
    "jagged": Set(100, 20, 10, 0.35),
    "crowded": Set(40, 60, 30, 0.35),
    "large": Set(300, 30, 20, 0.2),
}
SLOW = {"jagged", "crowded", "large"}
"""Sets that take the plain evaluator so long that it is run once."""


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


def score(truth_file: Path, results: Path, workers: int) -> dict[str, float]:
    """Seconds, MiB above the start and AP of scoring a set in this process."""
    logging.disable(logging.WARNING)
    from idol.analysis import score_files
    from idol.config import AnalysisConfig
    from idol.masks import rle
    from idol.ytvis import truth

    rle.compile_kernel()
    before = _peak()
    started = time.perf_counter()
    found = score_files.run(
        truth.read(truth_file),
        {"results": results},
        score_files.Analyses(config=AnalysisConfig(resamples=0)),
        workers=workers,
    )
    seconds = time.perf_counter() - started
    memory = _peak() - before
    return {"seconds": seconds, "memory": memory, "AP": found.files[0].metrics.stats["AP"]}


def score_plainly(truth_file: Path, results: Path) -> dict[str, float]:
    """The same by the plain evaluator."""
    from benchmarks import plain_evaluator

    before = _peak()
    started = time.perf_counter()
    found = plain_evaluator.evaluate(truth_file, results)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "memory": _peak() - before, "AP": found["AP"]}


def _peak() -> float:
    """MiB that this process has held at most; what it was forked from does not count."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets", nargs="*", choices=tuple(SETS), default=["ellipses", "jagged", "crowded"]
    )
    parser.add_argument(
        "--given",
        nargs=4,
        action="append",
        default=[],
        metavar=("NAME", "TRUTH", "RESULTS", "SECONDS"),
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-plain", action="store_true", help="leave the plain evaluator out")
    parser.add_argument("--keep", type=Path, help="keep generated sets here, and use those there")
    parser.add_argument("--growth", action="store_true", help="memory alone, at 1 and 10 times")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one is not None:
        truth, results = Path(options.one[0]), Path(options.one[1])
        how = options.one[2]
        plain = how == "plain"
        print(
            json.dumps(score_plainly(truth, results) if plain else score(truth, results, int(how)))
        )
        return
    words = sys.argv[1:] if argv is None else argv
    shown = " ".join(Path(word).name if "/" in word else word for word in words)
    print(machine.header(f"python -m benchmarks.scoring {shown}", "cpu"))
    print()
    if options.growth:
        _growth()
        return
    columns = ["set", "videos × frames × predictions", "results, MB", "evaluator", "seconds"]
    columns += [
        "plain, times as long",
        "official, times as long",
        "MiB above the start",
        "command, s",
        "AP",
    ]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    ways = [*([] if options.no_plain else ["plain"]), *map(str, options.workers)]
    for name in options.sets:
        numbers = SETS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if options.keep is None else options.keep / name
            files = folder / "truth.json", folder / "results.json"
            if not files[0].exists():  # it is written last
                folder.mkdir(parents=True, exist_ok=True)
                generate(folder, numbers)
            shape = f"{numbers.videos} × {numbers.frames} × {numbers.predictions}"
            _rows(name, shape, files, None, ways, options.rounds)
    for name, truth_name, results_name, official in options.given:
        files = Path(truth_name), Path(results_name)
        _rows(name, "–", files, float(official), ways, options.rounds)


def _growth() -> None:
    """Print how much more memory ten times as many videos take."""
    print("| videos | results, MB | evaluator | MiB above the start | KiB for one more video |")
    print("|---|---|---|---|---|")
    before: dict[str, tuple[int, float]] = {}
    for times in (1, 10):
        numbers = SETS["ellipses"]._replace(videos=times * SETS["ellipses"].videos)
        with tempfile.TemporaryDirectory() as temporary:
            files = Path(temporary, "truth.json"), Path(temporary, "results.json")
            generate(Path(temporary), numbers)
            size = files[1].stat().st_size / 1e6
            for way in ("1", "plain"):
                memory = _apart(files, way)["memory"]
                few, least = before.setdefault(way, (numbers.videos, memory))
                more = 2**10 * (memory - least) / max(1, numbers.videos - few)
                label = "plain" if way == "plain" else "jobs.score"
                cells = f"{numbers.videos} | {size:.0f} | {label} | {memory:.0f}"
                print(f"| {cells} | {f'{more:.1f}' if times > 1 else '–'} |", flush=True)


def _rows(
    name: str,
    shape: str,
    files: tuple[Path, Path],
    official: float | None,
    ways: Sequence[str],
    rounds: int,
) -> None:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in ways:  # in turn, so that what else the machine does meets all of them
            if way != "plain" or not turn or name not in SLOW:
                runs[way].append(_apart(files, way))
    best = {way: min(run["seconds"] for run in runs[way]) for way in ways}
    size = files[1].stat().st_size / 1e6
    for way in ways:
        plain = way == "plain"
        run = min(runs[way], key=lambda run: run["seconds"])
        label = "plain" if plain else f"jobs.score, {way} thread{'s' * (way != '1')}"
        cells = [name, shape, f"{size:.0f}", label, f"{best[way]:.2f}"]
        cells.append(f"{best['plain'] / best[way]:.1f}" if "plain" in best and not plain else "–")
        cells.append("–" if official is None or plain else f"{official / best[way]:.1f}")
        cells.append(f"{run['memory']:.0f}")
        cells.append(f"{_command(files):.1f}" if way == ways[-1] else "–")
        cells.append(f"{run['AP']:.4f}")
        print("| " + " | ".join(cells) + " |", flush=True)
    if len({round(run["AP"], 9) for of_way in runs.values() for run in of_way}) > 1:
        raise SystemExit(f"the evaluators disagree about {name}: {runs}")


def _apart(files: tuple[Path, Path], way: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scoring", "--one", *map(str, files), way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _command(files: tuple[Path, Path]) -> float:
    command = [sys.executable, "-m", "jobs.score", "--truth", str(files[0])]
    command += ["--results", str(files[1]), "--bootstrap", "0"]
    started = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
