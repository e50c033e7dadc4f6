"""How many streams one network holds: frames a second, delay, fairness, identities, faults.

python -m benchmarks.stream_load                       1 to 64 streams in this process
python -m benchmarks.stream_load --weights R50 --device cuda --speed fast

Every stream shows a synthetic video of its own again and again, forwards and back. First as files:
as fast as they are taken, for the frames a second, and that each stream's identities are those of
a segmenter by itself. Then as cameras of --rate frames a second, for delays and what is left out.
Last, sixteen cameras of which one dies, one stalls, one changes its size, one sends junk, beside
idle ones: what the others lose.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from idol.images.live import Frame, Image, Source, SourceError
from idol.images.synthetic import SyntheticConfig, make_video
from idol.network.model import IDOL
from idol.segmenter import OnlineSegmenter
from idol.streams import StreamResult, Streams
from idol.weights import checkpoint

SEED = 7001
LENGTH = 10
COUNTS = (1, 2, 4, 8, 16, 32, 64)


def video(number: int) -> list[Image]:
    """The frames of a stream, forwards and back: they go on without a jump."""
    frames = list(make_video(SyntheticConfig(length=(LENGTH, LENGTH)), (SEED, number)).frames)
    return frames + frames[-2:0:-1]


@dataclass(frozen=True, slots=True)
class Camera(Source):
    """Shows pictures at a rate, whether they are taken or not; fault: what becomes of it."""

    name: str = "camera:0"
    every: int = 1
    frames: int | None = None
    rate: float | None = 5.0
    endless: bool = True
    pictures: Sequence[Image] = ()
    seconds: float = 10.0
    fault: str = ""

    def __iter__(self) -> Iterator[Frame]:
        begun = time.monotonic()
        assert self.rate is not None
        for number in itertools.count():
            due = begun + number / self.rate
            half = due - begun > self.seconds / 2
            if due - begun > self.seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            image: Any = self.pictures[number % len(self.pictures)]
            if half and self.fault == "dies":
                raise SourceError("the camera is gone")
            if half and self.fault == "stalls":
                time.sleep(self.seconds)
                return
            if half and self.fault == "another size":
                image = np.ascontiguousarray(image[:, : image.shape[1] * 3 // 4])
            if half and self.fault == "junk":
                image = "no picture"
            yield Frame(number, number / self.rate, image)


def alone(model: IDOL, frames: Sequence[Image]) -> list[list[int]]:
    """The identities that a segmenter by itself finds in every frame."""
    segmenter = OnlineSegmenter(model, keep_tracks=False)
    return [segmenter(frame).track_ids.tolist() for frame in frames]


def as_files(model: IDOL, count: int, options: argparse.Namespace) -> tuple[float, str]:
    """Frames a second of all streams together; of how many the identities are those alone."""
    shown = max(4, options.frames // count)
    videos = [list(itertools.islice(itertools.cycle(video(n)), shown)) for n in range(count)]
    with Streams(model, batch=options.batch, limit=count, speed=options.speed) as streams:
        for n, frames in enumerate(videos):
            streams.add(frames, name=str(n))
        begun = time.monotonic()
        results = [result for result in streams if not result.ended]
        spent = time.monotonic() - begun
    found: dict[str, list[list[int]]] = {}
    for result in results:
        assert result.instances is not None, result.error
        found.setdefault(result.name, []).append(result.instances.track_ids.tolist())
    checked = range(min(count, options.checked))
    same = sum(found[str(n)] == alone(model, videos[n]) for n in checked)
    return len(results) / spent, f"{same} of {len(checked)}"


def as_cameras(
    model: IDOL, cameras: Sequence[Camera], options: argparse.Namespace, idle: int = 0
) -> dict[str, list[StreamResult]]:
    """Results by stream."""
    idle_camera = Camera(pictures=video(0), seconds=options.seconds * 2, rate=1e-3)
    found: dict[str, list[StreamResult]] = {}
    with Streams(model, batch=options.batch, patience=0.0, speed=options.speed) as streams:
        for camera in cameras:
            streams.add(camera, name=camera.name)
        for n in range(idle):
            streams.add(idle_camera, name=f"idle-{n}")
        waited = {camera.name for camera in cameras if camera.fault != "stalls"}
        for result in streams:
            found.setdefault(result.name, []).append(result)
            waited -= {result.name} if result.ended else set()
            if not waited:
                break
    return found


def camera_row(model: IDOL, count: int, options: argparse.Namespace) -> str:
    """Cells of the table of cameras."""
    cameras = [
        Camera(name=str(n), pictures=video(n), rate=options.rate, seconds=options.seconds)
        for n in range(count)
    ]
    found = as_cameras(model, cameras, options)
    results = [r for stream in found.values() for r in stream if r.instances is not None]
    served = [sum(r.instances is not None for r in stream) for stream in found.values()]
    delays = 1000 * np.array([result.delay for result in results])
    offered = options.rate * options.seconds * count
    return (
        f"{len(results) / options.seconds:.0f} of {offered / options.seconds:.0f} | "
        f"{np.percentile(delays, 50):.0f} | {np.percentile(delays, 99):.0f} | "
        f"{min(served)} / {max(served)}"
    )


def faults(model: IDOL, options: argparse.Namespace) -> Iterator[str]:
    """Lines of the table of faults."""
    names = ["dies", "stalls", "another size", "junk"]
    for fault in ["", *names]:
        cameras = [
            Camera(
                name=str(n), pictures=video(n), rate=options.fault_rate, seconds=options.seconds,
                fault=fault if n == 0 else "",
            )
            for n in range(8)
        ]  # fmt: skip
        found = as_cameras(model, cameras, options, idle=100 if not fault else 0)
        first, others = found["0"], [found[str(n)] for n in range(1, 8)]
        fine = [sum(r.instances is not None for r in stream) for stream in others]
        errors = [r for r in first if r.error is not None]
        told = f"{len(errors)} errors: {errors[0].error}" if errors else "none"
        lost = sum(stream[-1].dropped for stream in others)
        name = fault or "none, and 100 idle ones"
        good = sum(r.instances is not None for r in first)
        yield f"| {name} | {good} | {told} | {min(fine)} / {max(fine)} | {lost} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--preset")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--speed", choices=("exact", "fast"))
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=256, help="of all streams together, as files")
    parser.add_argument("--checked", type=int, default=8, help="streams also followed alone")
    parser.add_argument("--rate", type=float, default=2.0, help="frames a second of a camera")
    parser.add_argument("--fault-rate", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    model = checkpoint.load(options.weights, preset=options.preset, device=options.device)
    print(machine.header(machine.command("benchmarks.stream_load"), options.device))
    print(
        "| streams | frames/s, as files | identities as alone | cameras: frames/s taken | "
        "delay p50, ms | p99, ms | frames of a stream, fewest / most |"
    )
    print("|---" * 7 + "|")
    for count in options.counts:
        speed, same = as_files(model, count, options)
        row = camera_row(model, count, options)
        print(f"| {count} | {speed:.0f} | {same} | {row} |", flush=True)
    print("\n| of eight cameras, one | its frames | told | frames of the others | left out |")
    print("|---|---|---|---|---|")
    for line in faults(model, options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
