"""What a whole data set costs: jobs.prepare on sets of OVIS's size, a quarter, half and all of it.

python -m benchmarks.data_scale
python -m benchmarks.data_scale --videos 60 120 --frames 36

Videos share their pictures (links to the frames of a few drifting textures), each has masks of its
own. Every row is one run of the job in a process of its own: seconds of the clock with the start of
Ray, the peak of the driver's own memory (RssAnon, looked at every 20 ms: pages of Ray's object
store, which all processes share, are not in it), and what was written. The last line is the slope
between the smallest and the largest set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from benchmarks import machine
from pipelines.storage import manifest

SIZE = (360, 640)
_TEXTURES = 8
_DRIVER = """
import sys, threading, time
from jobs import prepare
peak = 0
def look():
    global peak
    while True:
        with open("/proc/self/status") as lines:
            peak = max(peak, *(int(x.split()[1]) for x in lines if x.startswith("RssAnon")))
        time.sleep(0.02)
threading.Thread(target=look, daemon=True).start()
prepare.main(sys.argv[1:])
print(peak)
"""


class Row(NamedTuple):
    """One run: seconds of the clock, KiB of the driver's peak, rows, files and bytes written."""

    videos: int
    seconds: float
    peak: int
    rows: int
    files: int
    size: int


def pictures(folder: Path, frames: int) -> None:
    """Frames of a few drifting textures."""
    rng = np.random.default_rng(0)
    for texture in range(_TEXTURES):
        small = rng.integers(0, 256, (SIZE[0] // 8 + 30, SIZE[1] // 8 + 40, 3), np.uint8)
        wide = cv2.resize(small, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
        for t in range(frames):
            image = wide[2 * t % 200 :, 3 * t % 300 :][: SIZE[0], : SIZE[1]]
            path = folder / f"texture{texture}" / f"{t:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])


def labels(folder: Path, videos: int, frames: int, tracks: int) -> Path:
    """Annotations of so many videos, their masks ellipses that drift; frames are links."""
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    objects = []
    for video in range(1, videos + 1):
        place = folder / f"video{video:05d}"
        if not place.exists():
            place.mkdir()
            for t in range(frames):
                os.link(folder / f"texture{video % _TEXTURES}" / f"{t:05d}.jpg", place / f"{t}.jpg")
        names = [f"{place.name}/{t}.jpg" for t in range(frames)]
        shape = {"height": SIZE[0], "width": SIZE[1], "length": frames}
        rows.append({"id": video, **shape, "file_names": names})
        for _ in range(tracks):
            centre, axes = rng.uniform((60, 60), SIZE[::-1]), rng.uniform(15, 80, 2)
            masks = []
            for t in range(frames):
                view = np.zeros(SIZE, np.uint8)
                at = (int(centre[0] + 2 * t), int(centre[1] + t))
                cv2.ellipse(view, at, (int(axes[0]), int(axes[1])), 3 * t, 0, 360, 1, -1)
                counts = coco_mask.encode(np.asfortranarray(view))["counts"].decode()
                masks.append({"size": list(SIZE), "counts": counts} if view.any() else None)
            ids = {"id": len(objects) + 1, "video_id": video, "category_id": 1, "iscrowd": 0}
            objects.append({**ids, "segmentations": masks})
    out = folder / f"{videos}.json"
    content = {"videos": rows, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
    out.write_text(json.dumps(content))
    return out


def measured(annotations: Path, out: Path, videos: int, more: Sequence[str]) -> Row:
    """One run of jobs.prepare."""
    words = ["--annotations", str(annotations), "--frames", str(annotations.parent), *more]
    command = [sys.executable, "-c", _DRIVER, *words, "--out", str(out), "--num-cpus", "4"]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - began
    files = [path for path in out.rglob("*") if path.is_file()]
    written = manifest.read(out, "prepare")
    peak = int(done.stdout.split()[-1])
    size = sum(path.stat().st_size for path in files)
    return Row(videos, seconds, peak, written.rows, len(files), size)


def main() -> None:
    """Print one table and the slopes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--videos", type=int, nargs="+", default=[152, 304, 607], help="of each set"
    )
    parser.add_argument("--frames", type=int, default=70, help="of a video")
    parser.add_argument("--tracks", type=int, default=6, help="of a video")
    parser.add_argument("--preset", default="ovis_r50")
    options = parser.parse_args()
    print(machine.header(machine.command("benchmarks.data_scale")))
    print("\n| videos | frames | JSON | seconds | peak of the driver | rows | files | written |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "frames"
        pictures(folder, options.frames)
        for videos in options.videos:
            made = labels(folder, videos, options.frames, options.tracks)
            out = Path(temporary) / f"pairs{videos}"
            row = measured(made, out, videos, ["--preset", options.preset])
            found.append(row)
            print(
                f"| {videos} | {videos * options.frames} | {made.stat().st_size / 2**20:.0f} MiB "
                f"| {row.seconds:.0f} | {row.peak / 1024:.0f} MiB | {row.rows} | {row.files} "
                f"| {row.size / 2**20:.0f} MiB |",
                flush=True,
            )
    first, last = found[0], found[-1]
    more = max(1, last.videos - first.videos)
    print(
        f"\nEach further video: {1e3 * (last.seconds - first.seconds) / more:.0f} ms, "
        f"{(last.peak - first.peak) / more:.1f} KiB of the driver, "
        f"{(last.size - first.size) / more / 1024:.0f} KiB written."
    )


if __name__ == "__main__":
    main()
