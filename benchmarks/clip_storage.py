"""What to store for released sampling: pairs, windows of a video, or frames. Bytes, by measurement.

python -m benchmarks.clip_storage ANNOTATIONS.json [--max-gap 10]
python -m benchmarks.clip_storage --videos 20          made videos of 36 frames of 720p

Stored: bytes of the files for one byte of what the frames are (their pictures and masks). Read:
bytes that a visit reads, in pictures. Windows are rows of W frames of which each holds all partners
of its W - 2 max_gap keys, a shorter video is one row; stored pairs are m for every frame; frames
are what `pipelines.storage.frame_store` writes. All are written, and the files are measured.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import data, machine
from idol.config import PairConfig
from pipelines.sources import annotations as annotation_files
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.stages import pairs, shard_rows
from pipelines.storage import frame_store, schemas

Rows = list[dict[str, Any]]


def frames_of(dataset: Dataset, config: PairConfig) -> list[tuple[VideoRecord, Rows]]:
    """The videos with a pair, and the rows of FRAMES of each."""
    found = []
    for video in dataset.videos:
        plan = [shard_rows.planned_frame(video, t, dataset.labels) for t in range(len(video))]
        if len(plan) > 1:
            found.append((video, shard_rows.fill_frames(plan, config)[0]))
    return found


def size_of(row: dict[str, Any]) -> int:
    """Bytes of a frame's picture and masks."""
    return len(row["jpeg"]) + sum(len(one["rle"]) for one in row["instances"])


def pairs_of(videos: list[tuple[VideoRecord, Rows]], config: PairConfig) -> Rows:
    """Rows of PAIRS."""
    made = []
    for video, rows in videos:
        for key, reference in pairs.draw(video, config):
            sides = {"key": rows[key], "reference": rows[reference]}
            objects: dict[int, dict[str, Any]] = {}
            for name, side in sides.items():
                for one in side["instances"]:
                    new = {"instance_id": one["instance_id"], "label": one["label"]}
                    new |= {"key_rle": None, "reference_rle": None}
                    objects.setdefault(one["instance_id"], new)[f"{name}_rle"] = one["rle"]
            shared = ("video_id", "height", "width")
            made.append(
                {name: rows[key][name] for name in shared}
                | {f"{name}_index": side["frame_index"] for name, side in sides.items()}
                | {f"{name}_jpeg": side["jpeg"] for name, side in sides.items()}
                | {"instances": list(objects.values())}
            )
    return made


def windows(length: int, size: int, gap: int) -> list[range]:
    """The frames of every row of a video, so that each frame has its partners in one of them."""
    if length <= size:
        return [range(length)]
    step = size - 2 * gap
    count = -(-(length - 2 * gap) // step)
    return [range(n * step, min(n * step + size, length)) for n in range(count)]


def written(table: pa.Table, path: Path, group: int) -> int:
    """Bytes of a parquet file of these rows."""
    pq.write_table(table, path, compression="zstd", row_group_size=group, write_statistics=False)
    return path.stat().st_size


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, nargs="?")
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--max-gap", type=int, default=10)
    options = parser.parse_args()
    gap = options.max_gap
    print(machine.header(machine.command("benchmarks.clip_storage")))
    with tempfile.TemporaryDirectory() as temporary:
        folder, path = Path(temporary), options.annotations
        if path is None:
            data.make(folder, options.videos)
            path = folder / "jpeg.json"
            dataset = annotation_files.read(path, folder / "frames")
        else:
            dataset = annotation_files.read(path)
        config = PairConfig(max_gap=gap)
        videos = frames_of(dataset, config)
        sizes = [[size_of(row) for row in rows] for _, rows in videos]
        total, count = sum(map(sum, sizes)), sum(map(len, sizes))
        print(f"{len(videos)} videos, {count} frames of {total / count / 1e3:.1f} KB on average\n")
        print("| what | stored | read a visit, bytes of frames | partners of a frame |")
        print("|---|---|---|---|")

        def row(name: str, stored: int, read: float, partners: str) -> None:
            print(f"| {name} | {stored / total:.2f} | {read * count / total:.1f} | {partners} |")

        mean = [sum(each) / len(each) for each in sizes]  # a visit draws a frame of a video
        for many in (1, 4):
            drawn = [
                one
                for seed in range(many)
                for one in pairs_of(videos, PairConfig(sampling="stored", max_gap=gap, seed=seed))
            ]
            table = schemas.table(drawn, schemas.PAIRS)
            row(
                f"pairs, {many} a frame",
                written(table, folder / "pairs.parquet", 16),
                2 * float(np.mean(mean)),
                f"{many}, drawn once",
            )
        for size in (2 * gap + 8, 4 * gap, 8 * gap):
            rows, read = [], []
            for (_, frames), each in zip(videos, sizes, strict=True):
                cuts = windows(len(frames), size, gap)
                rows += [{"frames": [frames[t] for t in cut]} for cut in cuts]
                # A key lies in the first window that holds its partners.
                of_key = []
                for key in range(len(frames)):
                    near = max(0, key - gap), min(len(frames) - 1, key + gap)
                    cut = next(c for c in cuts if near[0] in c and near[1] in c)
                    of_key.append(sum(each[t] for t in cut))
                read.append(sum(of_key) / len(of_key))
            kind = pa.struct(list(schemas.FRAMES))
            table = pa.Table.from_pylist(rows, schema=pa.schema([("frames", pa.list_(kind))]))
            row(
                f"windows of {size} frames",
                written(table, folder / "windows.parquet", 1),
                float(np.mean(read)),
                "all",
            )
        everything = [one for _, rows in videos for one in rows]
        frame_store.commit(everything, folder, 0)
        stored = sum(f.stat().st_size for f in folder.glob("*-00000.*"))
        row("frames", stored, 2 * float(np.mean(mean)), "all")


if __name__ == "__main__":
    main()
