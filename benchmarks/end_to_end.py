"""From pixels in a file to answers: decoding, network, masks, association, output, all together.

python -m benchmarks.end_to_end                                    tiny network, 128 x 192
python -m benchmarks.end_to_end --preset ytvis19_r50 --side 360    ResNet-50, random weights
python -m benchmarks.end_to_end --preset ytvis19_r50 --device cuda --batches 1 32

`results`: frames of a file to instances, one after the other, as `idol.track`. `film`: and drawn,
and encoded again, as `idol track`. `streams`: so many files at once through one network. `camera`:
frames that come one at a time, each answered before the next: delay from the frame to its answer.
`association` is the share of `results` that the tracker takes. Random weights find what they find:
the detections of a frame are as many as the selection lets through, which costs masks.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import machine
from idol import presets, segmenter
from idol.config import Speed, override
from idol.images import live
from idol.images.live import Image
from idol.images.painter import Painter
from idol.images.synthetic import SyntheticConfig, make_video
from idol.network.model import IDOL
from idol.segmenter import OnlineSegmenter
from idol.streams import Streams
from idol.weights import checkpoint

RATE = 10
_HAS_AV = importlib.util.find_spec("av") is not None


def drawn(side: int, frames: int) -> list[Image]:
    """Synthetic frames with the shorter side of so many pixels."""
    size = (side, side * 16 // 9 // 2 * 2)
    config = dataclasses.replace(SyntheticConfig.easy(), size=size, length=(frames, frames))
    return list(make_video(config, (9001, 0)).frames)


def stored(folder: Path, frames: Sequence[Image]) -> Path:
    """The frames as an mp4, or as JPEGs where there is no PyAV."""
    if _HAS_AV:
        from pipelines.report.film import Film

        with Film(folder / "film.mp4", RATE) as film:
            for frame in frames:
                film.add(frame)
            film.finish()
        return folder / "film.mp4"
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / "frames" / f"{number:05d}.jpg"), frame[..., ::-1])
    return folder / "frames"


def made(options: argparse.Namespace) -> IDOL:
    """The shipped network, or one of a preset with random weights."""
    if options.preset is None:
        return checkpoint.load("shipped", device=options.device)
    torch.manual_seed(0)
    sides = [f"transforms.test_short_side={options.side}", "transforms.test_max_side=4096"]
    config = override(presets.by_name(options.preset), sides)
    return IDOL(config).to(options.device).eval()


def timed(work: Callable[[], int], seconds: float) -> float:
    """Frames a second of work that says how many it did; repeated for so long."""
    work()  # kernels are chosen, buffers made
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds or not count:
        count += work()
    return count / (time.perf_counter() - begun)


def to_results(one: OnlineSegmenter, source: Path) -> int:
    """The instances of every frame of a file."""
    return sum(1 for _ in segmenter.track(source, one))


def to_film(one: OnlineSegmenter, source: Path, out: Path) -> int:
    """The same, drawn and encoded."""
    from pipelines.report.film import Film

    count, painter = 0, Painter()
    with Film(out, RATE) as film:
        for found in segmenter.track(source, one):
            assert found.image is not None
            ids, scores = found.track_ids.tolist(), found.scores.tolist()
            film.add(painter.paint(found.image, found.masks, ids, found.names, scores))
            count += 1
        film.finish()
    return count


def to_streams(model: IDOL, source: Path, batch: int, speed: Speed) -> int:
    """The instances of every frame of as many files as a batch has frames."""
    with Streams(model, batch=batch, speed=speed, window=1.0) as streams:
        for _ in range(batch):
            streams.add(live.open_source(str(source)))
        return sum(result.instances is not None for result in streams)


def delays(one: OnlineSegmenter, frames: Sequence[Image], seconds: float) -> np.ndarray:
    """Milliseconds from a frame to its answer, frame after frame."""
    one.reset()
    spent: list[float] = []
    while sum(spent) < 1000 * seconds or len(spent) < 10:
        begun = time.perf_counter()
        one(frames[len(spent) % len(frames)])
        spent.append(1000 * (time.perf_counter() - begun))
    return np.array(spent[2:])


class _Clock:
    """Adds up what a function takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.seconds, self._function = 0.0, function

    def __call__(self, *args: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return self._function(*args, **named)
        finally:
            self.seconds += time.perf_counter() - begun


def association_share(model: IDOL, source: Path, speed: Speed) -> float:
    """Share of the time from file to results that association takes."""
    one = OnlineSegmenter(model, keep_tracks=False, speed=speed)
    clock = _Clock(one._follower.add)
    one._follower.add = clock  # type: ignore[method-assign]
    to_results(one, source)
    clock.seconds, begun = 0.0, time.perf_counter()
    to_results(one, source)
    return clock.seconds / (time.perf_counter() - begun)


def rows(model: IDOL, options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Lines of the table."""
    frames = drawn(options.side, options.frames)
    source = stored(folder, frames)
    for speed in options.speeds:
        one = OnlineSegmenter(model, keep_tracks=False, speed=speed)
        alone = timed(functools.partial(to_results, one, source), options.seconds)
        yield f"| {speed} | results, one file | {alone:.1f} | |"
        if _HAS_AV:
            film = functools.partial(to_film, one, source, folder / "seen.mp4")
            yield f"| {speed} | film, one file | {timed(film, options.seconds):.1f} | |"
        for batch in options.batches:
            many = functools.partial(to_streams, model, source, batch, speed)
            yield f"| {speed} | {batch} streams | {timed(many, options.seconds):.1f} | |"
        found = delays(one, frames, options.seconds)
        half, most = np.percentile(found, [50, 99])
        yield f"| {speed} | camera to answer | {1000 / half:.1f} | {half:.1f} / {most:.1f} |"
        share = association_share(model, source, speed)
        yield f"| {speed} | association, share of results | {100 * share:.1f} % | |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", help="random weights of this preset; default: the shipped ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=128, help="shorter side of the frames")
    parser.add_argument("--frames", type=int, default=60, help="of the film")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--speeds", nargs="+", choices=("exact", "fast"), default=("exact", "fast"))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, at least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    model = made(options)
    print(machine.header(machine.command("benchmarks.end_to_end"), options.device))
    print("| speed | from file to | frames/s | delay p50 / p99, ms |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for line in rows(model, options, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
