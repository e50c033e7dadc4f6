"""A stream of an hour: what the process holds and what a frame takes, from begin to end.

python -m benchmarks.long_stream
python -m benchmarks.long_stream --job-frames 9000

Synthetic videos are shown one after the other, forwards and back, so that objects keep leaving for
good and new ones keep coming. First through idol.Streams; then the same frames from a film file
through jobs.track, which writes all results. Memory is what the process has for itself (RssAnon),
time is the processor's, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.processes import Process
from idol.images.live import Image
from idol.images.synthetic import SyntheticConfig, make_video
from idol.streams import Streams
from pipelines.report.film import Film

RATE = 25
VIDEOS, LENGTH, SHOWN = 24, 20, 60
SEED = 7301
_EVERY_S = 0.5  # memory of the job is looked at so often


def pictures(count: int) -> Iterator[Image]:
    """The stream's frames: a video's for SHOWN frames, then the next one's."""
    videos = []
    for number in range(VIDEOS):
        frames = list(make_video(SyntheticConfig(length=(LENGTH, LENGTH)), (SEED, number)).frames)
        videos.append(frames + frames[-2:0:-1])
    for number in range(count):
        turn, place = divmod(number, SHOWN)
        video = videos[turn % VIDEOS]
        yield video[place % len(video)]


def through_streams(count: int, parts: int) -> Iterator[tuple[float, float, int]]:
    """Of each part of the stream: the largest MiB, ms of processor time a frame, tracks so far."""
    own, size = Process(os.getpid(), ""), count // parts
    with Streams.load("shipped", batch=8) as streams:
        streams.add(pictures(count), name="hour")
        peak, tracks, before = 0.0, 0, time.process_time()
        for done, result in enumerate((r for r in streams if not r.ended), 1):
            assert result.instances is not None, result.error
            tracks = max([tracks, *(1 + i for i in result.instances.track_ids.tolist())])
            if done % 50 == 0:
                peak = max(peak, own.memory())
            if done % size == 0:
                now = time.process_time()
                yield peak, 1000 * (now - before) / size, tracks
                peak, before = 0.0, now


def through_job(count: int, parts: int) -> list[tuple[float, float]]:
    """As through_streams of equal parts of the job's processor time, without tracks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hour.mp4"
        with Film(path, RATE) as film:
            for picture in pictures(count):
                film.add(picture)
            film.finish()
        words = ["-m", "jobs.track", str(path), "--weights", "shipped", "--out", f"{folder}/out"]
        job = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
        seen: list[tuple[float, float]] = []  # seconds of its processors, MiB
        process = Process(job.pid, "")
        while job.poll() is None:
            seen.append((process.cpu(), process.memory()))
            time.sleep(_EVERY_S)
        if job.returncode:
            raise SystemExit(f"jobs.track ended with {job.returncode}")
    whole = max(cpu for cpu, _ in seen)
    found = []
    for part in range(parts):
        low, high = whole * part / parts, whole * (part + 1) / parts
        found.append(max((mib for cpu, mib in seen if low <= cpu <= high), default=0.0))
    return [(mib, 1000 * whole / count) for mib in found]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each part of the hour."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=3600 * RATE)
    parser.add_argument("--job-frames", type=int, default=3600 * RATE)
    parser.add_argument("--parts", type=int, default=12)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.long_stream")))
    print("| frames | Streams: MiB | ms a frame | tracks so far |\n|---|---|---|---|", flush=True)
    size = options.frames // options.parts
    parts = through_streams(options.frames, options.parts)
    for number, (mib, spent, tracks) in enumerate(parts, 1):
        print(f"| {number * size} | {mib:.1f} | {spent:.2f} | {tracks} |", flush=True)
    print("\n| part of jobs.track | MiB | ms a frame, of the whole |\n|---|---|---|")
    for number, (mib, spent) in enumerate(through_job(options.job_frames, options.parts), 1):
        print(f"| {number} of {options.parts} | {mib:.1f} | {spent:.2f} |", flush=True)


if __name__ == "__main__":
    main()
