"""A film of ten minutes followed by the command a user types: memory over time, and speed.

python -m benchmarks.own_video

The film is synthetic, 10 frames a second, with a cut every 30 seconds. Memory is what the process
has for itself (RssAnon: without files) when so much of the film is done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import machine
from benchmarks.processes import Process
from idol.images.synthetic import SyntheticConfig, make_video
from pipelines.report.film import Film
from pipelines.stream import places

RATE, CLIP = 10, 300
_EVERY_S = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=int, default=1, help="use each n-th frame")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-own"))
    options = parser.parse_args(argv)
    frames = round(60 * RATE * options.minutes)
    video = options.out / f"film-{frames}.mp4"
    if not video.exists():
        draw(video, frames)
    out = options.out / "followed"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "jobs.track", str(video), "--weights", "shipped"]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--out", str(out), "--every", str(options.every)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    watched = Process(process.pid, "jobs.track")
    seen: list[tuple[float, float]] = []  # minutes of the film that are done, MiB
    while process.poll() is None:
        seen.append((_done(out / places.ROWS), watched.memory()))
        time.sleep(_EVERY_S)
    line = json.loads(process.communicate()[0].splitlines()[-1])
    print(machine.header(machine.command("benchmarks.own_video")))
    print(f"Each {options.every}-th frame.\n" if options.every > 1 else "", end="")
    print("| minutes done | MiB |\n|---|---|")
    for minute in range(1, int(options.minutes) + 1):
        near = next((mib for done, mib in seen if done >= minute - 0.02), None)
        print(f"| {minute} | {'–' if near is None else f'{near:.0f}'} |")
    print(f"| in the end, at most | {max(mib for _, mib in seen[-40:]):.0f} |\n")
    print(
        f"{line['frames']} frames in {time.monotonic() - started:.0f} s with the exports, "
        f"{line['frames_per_second']:.1f} a second, {line['tracks']} tracks; "
        + ", ".join(
            f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(out.iterdir())
        )
    )


def draw(video: Path, frames: int) -> None:
    """Write the film, of clips that follow one another."""
    config = replace(SyntheticConfig.easy(), length=(CLIP, CLIP))
    video.parent.mkdir(parents=True, exist_ok=True)
    left = frames
    with Film(video, RATE) as film:
        for index in itertools.count():
            for image in make_video(config, (98_000, index)).frames[:left]:
                film.add(image)
            left -= min(CLIP, left)
            if not left:
                break
        film.finish()


def _done(rows: Path) -> float:
    """Minutes of the film up to the last row that is there; 0 where there is none."""
    try:
        with rows.open("rb") as file:
            file.seek(max(0, rows.stat().st_size - 8192))
            lines = file.read().splitlines()[1:]
        return float(json.loads(lines[-1])["time"]) / 60
    except (OSError, ValueError, IndexError):
        return 0.0


if __name__ == "__main__":
    main()
