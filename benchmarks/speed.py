"""Frames a second from decoded pictures to stored detections, exact and fast, and fast's price.

python -m benchmarks.speed                               the tiny network on this machine
python -m benchmarks.speed --annotations REAL.json --weights W    real clips, another checkpoint
python -m benchmarks.speed --device cuda --preset ytvis19_r50     a large network's time alone

Every way sees the same frames: synthetic videos of other seeds than those trained on, or the clips
of a YouTube-VIS file. Accuracy is of the tracks that the checkpoint's own tracker makes of the
detections. "Same identity" is the share of the instances that the exact way follows, frame by
frame, whose best match among the other way's (mask IoU at least 0.5) has the same identity there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

import idol
from benchmarks import machine
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED, truth_of
from idol import presets
from idol.config import Config, DetectConfig, Speed
from idol.detection.detector import Detector
from idol.evaluation.average_precision import evaluate
from idol.images.synthetic import make_video
from idol.masks import rle
from idol.network.model import IDOL
from idol.structures import FrameDetections, Track
from idol.tracker.online import track_video
from idol.ytvis.results import to_ytvis

Frames = Sequence[NDArray[np.uint8]]
Found = list[list[FrameDetections]]


@dataclasses.dataclass(frozen=True)
class Way:
    """One row of the table: how, and how many frames at once."""

    speed: Speed
    batch: int
    compiled: bool = False

    @property
    def title(self) -> str:
        """As the table calls it."""
        return f"{self.speed}{', compiled' if self.compiled else ''} | {self.batch}"


def detect(detector: Detector, videos: Sequence[Frames], batch: int) -> Iterator[FrameDetections]:
    """Of all frames in order; frames of one shape share a batch, also of two videos."""
    waiting: list[Any] = []
    begun: list[Any] = []

    def flush() -> Iterator[FrameDetections]:
        begun.append(detector.start([f for f, _ in waiting], [i for _, i in waiting]))
        waiting.clear()
        if len(begun) > 1 or batch == 1:
            yield from begun.pop(0)()

    for video in videos:
        for index, frame in enumerate(video):
            prepared = detector.prepare(frame)
            if waiting and waiting[0][0].shape != prepared.shape:
                yield from flush()
            waiting.append((prepared, index))
            if len(waiting) == batch:
                yield from flush()
    if waiting:
        yield from flush()
    for result in begun:
        yield from result()


def run(
    model: IDOL,
    videos: Sequence[Frames],
    way: Way,
    seconds: float,
    config: Config | None = None,
    runs: int = 3,
) -> tuple[Found, float]:
    """Detections of every video, and frames a second (the median of all runs but the first)."""
    detector = Detector(model, config, speed=way.speed, batch=way.batch, compiled=way.compiled)
    number = sum(len(video) for video in videos)
    rates: list[float] = []
    found: list[FrameDetections] = []
    first = time.perf_counter()
    while len(rates) < runs or time.perf_counter() - first < seconds:
        started = time.perf_counter()
        found = list(detect(detector, videos, way.batch))
        rates.append(number / (time.perf_counter() - started))
    parts, start = [], 0
    for video in videos:
        parts.append(found[start : start + len(video)])
        start += len(video)
    return parts, statistics.median(rates[1:] or rates)


def score(
    model: IDOL, truth: dict[str, Any], found: Found
) -> tuple[dict[str, float], list[list[Track]]]:
    """AP of the tracks, and the tracks of every video."""
    tracker = model.config.tracker
    ids = [category["id"] for category in truth["categories"]]
    entries: list[Any] = []
    tracks = []
    for video, frames in zip(truth["videos"], found, strict=True):
        tracks.append(track_video(frames, tracker))
        entries += to_ytvis(
            tracks[-1], frames, video_id=video["id"], size=(video["height"], video["width"]),
            length=len(frames), category_ids=ids, config=tracker,
        )  # fmt: skip
    return dict(evaluate(truth, entries).stats), tracks


def same_identity(
    found: tuple[Found, list[list[Track]]], other: tuple[Found, list[list[Track]]], sizes: Any
) -> float:
    """Share of the first way's instances that the second one finds under the same identity."""
    agreed = total = 0
    for video, size in enumerate(sizes):
        pairs: dict[tuple[int, int], int] = {}
        counts: dict[int, int] = {}
        for index in range(len(found[0][video])):
            mine, theirs = (_masks(f[0][video][index], f[1][video], index) for f in (found, other))
            for track in mine:
                counts[track] = counts.get(track, 0) + 1
            if not mine or not theirs:
                continue
            one, two = (
                [{"size": list(size), "counts": counts} for counts in side.values()]
                for side in (mine, theirs)
            )
            overlap = coco_mask.iou(two, one, [0] * len(one))  # (theirs, mine)
            for column, track in enumerate(mine):
                best = int(overlap[:, column].argmax())
                if overlap[best, column] >= 0.5:
                    key = (track, list(theirs)[best])
                    pairs[key] = pairs.get(key, 0) + 1
        # Each identity's counterpart is the one that it meets most often.
        total += sum(counts.values())
        agreed += sum(max((n for k, n in pairs.items() if k[0] == t), default=0) for t in counts)
    return agreed / total if total else 1.0


def _masks(frame: FrameDetections, tracks: Sequence[Track], index: int) -> dict[int, bytes]:
    found = {t.track_id: frame.masks[t.detections[index]] for t in tracks if index in t.detections}
    # A mask without pixels overlaps with nothing, not even with itself.
    return {track: counts for track, counts in found.items() if rle.measure([counts])[1][0]}


def synthetic(count: int) -> dict[str, tuple[list[Frames], dict[str, Any]]]:
    """Held-out videos of both dials, with their truth."""
    sets = {}
    for name, dial in DIALS.items():
        videos = [make_video(dial, (HELD_OUT_SEED, i)) for i in range(count)]
        classes = 1 + max(int(label) for video in videos for label in video.labels)
        sets[f"{name}, {count} videos"] = (
            [list(video.frames) for video in videos],
            truth_of(videos, max(classes, idol.load("shipped").config.model.num_classes)),
        )
    return sets


def clips(paths: Sequence[Path]) -> dict[str, tuple[list[Frames], dict[str, Any]]]:
    """Videos of YouTube-VIS files, their frames in JPEGImages beside the file."""
    import cv2

    sets = {}
    for path in paths:
        truth = json.loads(path.read_text())
        videos: list[Frames] = []
        for video in truth["videos"]:
            files = [path.parent / "JPEGImages" / name for name in video["file_names"]]
            videos.append([cv2.imread(str(f))[:, :, ::-1].copy() for f in files])
        sets[f"{path.parent.name}, {len(videos)} videos"] = (videos, truth)
    return sets


def accuracy(options: argparse.Namespace) -> None:
    """The table of both ways on videos with truth."""
    model = idol.load(options.weights, device=options.device)
    ways = [Way(speed, batch) for speed in ("exact", "fast") for batch in (1, options.batch)]
    if options.compiled:
        ways.append(Way("fast", options.batch, compiled=True))
    sets = clips(options.annotations) if options.annotations else synthetic(options.videos)
    print("| videos | way | batch | frames/s | AP | AP50 | AP75 | AR10 | same identity |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (videos, truth) in sets.items():
        sizes = [(video["height"], video["width"]) for video in truth["videos"]]
        first: tuple[Found, list[list[Track]]] | None = None
        for way in ways:
            found, rate = run(model, videos, way, options.seconds, runs=options.runs)
            stats, tracks = score(model, truth, found)
            first = first or (found, tracks)
            cells = [f"{100 * stats[key]:.2f}" for key in ("AP", "AP50", "AP75", "AR10")]
            agreed = same_identity(first, (found, tracks), sizes)
            print(
                f"| {name} | {way.title} | {rate:.1f} | {' | '.join(cells)} "
                f"| {100 * agreed:.2f} % |",
                flush=True,
            )


def large(options: argparse.Namespace) -> None:
    """The table of a large network's time. Weights are random, and the score floor is where about
    ten detections a frame pass it, as many as in real videos."""
    torch.manual_seed(0)
    config = presets.by_name(options.preset)
    rng = np.random.default_rng(0)
    print("| frame | way | batch | frames/s | detections a frame |")
    print("|---|---|---|---|---|")
    for size in options.sizes:
        height, width = (int(side) for side in size.split("x"))
        transforms = dataclasses.replace(
            config.transforms, test_short_side=height, test_max_side=width
        )
        settings = dataclasses.replace(config, transforms=transforms)
        model = IDOL(settings).eval().to(options.device)
        one = rng.integers(0, 256, (64, height, width, 3), np.uint8)
        settings = dataclasses.replace(settings, detect=_floor(model, one[0], config.detect))
        ways = [Way(speed, batch) for speed in ("exact", "fast") for batch in (1, options.batch)]
        if options.compiled:
            ways.append(Way("fast", options.batch, compiled=True))
        for way in ways:
            frames = list(one[: 64 if options.device == "cuda" else 2])
            found, rate = run(model, [frames], way, options.seconds, settings)
            mean = statistics.mean(len(frame) for frame in found[0])
            print(f"| {size} | {way.title} | {rate:.1f} | {mean:.0f} |", flush=True)


def _floor(model: IDOL, frame: NDArray[np.uint8], config: DetectConfig) -> DetectConfig:
    """With the score floor that a dozen of the frame's queries pass, and at most ten of them."""
    detector = Detector(model)
    pixels = detector.prepare(frame).pixels[None]
    images = torch.nn.functional.pad(pixels, (0, -pixels.shape[3] % 32, 0, -pixels.shape[2] % 32))
    with torch.inference_mode():
        size = (pixels.shape[2], pixels.shape[3])
        logits = model(images.to(detector.device), sizes=[size]).logits[-1, 0]
    floor = float(logits.sigmoid().amax(-1).topk(13).values[-1])
    return dataclasses.replace(config, score_floor=floor, max_detections=10)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table with the machine above it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--annotations", type=Path, nargs="+", help="YouTube-VIS JSON")
    parser.add_argument("--videos", type=int, default=10, help="of each dial")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="at least, for each row")
    parser.add_argument("--runs", type=int, default=3, help="at least, the first one warms up")
    parser.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, help="also fast with torch.compile"
    )
    parser.add_argument("--preset", help="time a network of this preset, with random weights")
    parser.add_argument("--sizes", nargs="+", default=["360x640", "720x1280"])
    options = parser.parse_args(argv)
    if options.compiled is None:
        options.compiled = options.device == "cuda"
    print(machine.header(f"python -m benchmarks.speed {' '.join(sys.argv[1:])}", options.device))
    (large if options.preset else accuracy)(options)


if __name__ == "__main__":
    main()
