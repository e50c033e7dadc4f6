"""What the data stage costs: pairs from JPEG folders and video files, batches from pairs.

python -m benchmarks.data                      60 videos of 36 frames of 720p
python -m benchmarks.data --videos 20 --keep FOLDER

The floor is a plain loop that does no more than must be done: of a JPEG it reads the bytes and
decodes them once, for a damaged picture must not pass; a frame of a film it decodes and encodes;
both it writes as parquet. "prepare" is the work of the stage's tasks, in one process. Its decoded
frames are counted. The loader stands beside torch.utils.data.DataLoader on the JPEG folder, with
the same augmentation, both in one process. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import loaders, machine
from idol import presets
from idol.config import Config, override, to_dict
from idol.images import video_file
from idol.structures import ClipBatch
from pipelines.batches import loader
from pipelines.sources import annotations as annotation_files
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset
from pipelines.stages import pairs
from pipelines.storage import claims, layout, paths

SIZE = (720, 1280)
LENGTH = 36
_BATCHES = 24


def make(folder: Path, videos: int) -> None:
    """Write JPEG folders, films and annotations: textures that drift, and two tracks a video."""
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    shape = {"height": SIZE[0], "width": SIZE[1], "length": LENGTH}
    listed: dict[str, list[dict[str, Any]]] = {"jpeg": [], "mp4": []}
    tracks = []
    for video in range(1, videos + 1):
        small = rng.integers(0, 256, (SIZE[0] // 8 + 40, SIZE[1] // 8 + 40, 3), np.uint8)
        wide = cv2.resize(small, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
        names = [f"{video:04d}/{t:05d}.jpg" for t in range(LENGTH)]
        listed["jpeg"].append({"id": video, **shape, "file_names": names})
        film = [f"{video:04d}.mp4#{t}" for t in range(LENGTH)]
        listed["mp4"].append({"id": video, **shape, "file_names": film})
        (folder / "frames" / f"{video:04d}").mkdir(parents=True, exist_ok=True)
        import av

        with av.open(str(folder / "frames" / f"{video:04d}.mp4"), "w") as out:
            stream = out.add_stream("h264", rate=24)
            stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
            for t, name in enumerate(names):
                image = np.ascontiguousarray(wide[2 * t :, 3 * t :][: SIZE[0], : SIZE[1]])
                cv2.imwrite(str(folder / "frames" / name), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
            out.mux(stream.encode())
        for number in (1, 2):
            masks = []
            for t in range(LENGTH):
                mask = np.zeros(SIZE, np.uint8, order="F")
                centre = (200 * number + 8 * t, 150 * number + 4 * t)
                cv2.ellipse(view := np.ascontiguousarray(mask), centre, (90, 60), 0, 0, 360, 1, -1)
                counts = coco_mask.encode(np.asfortranarray(view))["counts"].decode()
                masks.append({"size": list(SIZE), "counts": counts})
            tracks.append(
                {"id": 10 * video + number, "video_id": video, "category_id": 1, "iscrowd": 0}
                | {"segmentations": masks}
            )
    for kind, rows in listed.items():
        content = {"videos": rows, "annotations": tracks, "categories": [{"id": 1, "name": "a"}]}
        (folder / f"{kind}.json").write_text(json.dumps(content))


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor that a call takes, of all threads, and what it returns."""
    gc.collect()
    before = time.process_time()
    value = work()
    return time.process_time() - before, value


def prepared(dataset: Dataset, out: Path, config: Config) -> int:
    """All shards, made in this process as the stage's tasks make them; their number."""
    plan, _ = pairs.deal(dataset, config.pairs, None)
    claim = to_dict(config.pairs)
    claims.prepare_output(out, layout.PREPARE, claim, "benchmark")
    shards = ([(dataset.videos[p.position], p) for p in shard] for shard in plan)
    pairs._write_plan(out / pairs._PLAN, shards)
    for number in range(len(plan)):
        row = pairs.write_shard(
            {"id": number},
            out=out,
            config=config.pairs,
            labels=dataset.labels,
            shards=list(range(len(plan))),
        )
        assert not row["error"], row
    (out / pairs._PLAN).unlink()
    claims.prepare_output(out, layout.PREPARE, claim, "benchmark").finish(total_shards=len(plan))
    return len(plan)


def floor(dataset: Dataset, out: Path, config: Config) -> None:
    """Every frame once, in a plain loop."""
    schema = pa.schema([("jpeg", pa.binary())])
    with pq.ParquetWriter(out, schema, compression="none") as writer:
        for video in dataset.videos:
            data = []
            whole = frames.read_many(video.frames, video_id=video.video_id, size=video.size)
            for name, image in zip(video.frames, whole, strict=True):
                film = frames.split(name)[1] is not None
                jpeg = frames.encode_jpeg(image, config.pairs.jpeg_quality) if film else b""
                data.append(jpeg or Path(name).read_bytes())
            writer.write_table(pa.table({"jpeg": data}, schema))


class Counted:
    """Counts the frames that video files decode."""

    def __init__(self) -> None:
        self.frames = 0
        whole = video_file.VideoFile._step

        def step(file: video_file.VideoFile) -> Any:
            found = whole(file)
            self.frames += found is not None
            return found

        setattr(video_file.VideoFile, "_step", step)  # noqa: B010


def taken(batches: Iterator[ClipBatch], count: int = _BATCHES) -> int:
    """Images in so many batches."""
    return sum(batch.images[:, :, 0, 0, 0].numel() for batch in itertools.islice(batches, count))


def growth(folder: Path, kind: str, times: int) -> tuple[int, int]:
    """Videos, and KiB that the driver holds at most while it reads and deals `times` as many.

    In a process of its own: VmHWM, the peak of all its resident memory, mapped files included.
    """
    content = json.loads((folder / f"{kind}.json").read_text())
    videos, tracks = content["videos"], content["annotations"]
    content["videos"] = [{**v, "id": v["id"] + 10_000 * n} for n in range(times) for v in videos]
    content["annotations"] = [
        {**t, "id": t["id"] + 1_000_000 * n, "video_id": t["video_id"] + 10_000 * n}
        for n in range(times)
        for t in tracks
    ]
    many = folder / f"{kind}-{times}.json"
    many.write_text(json.dumps(content))
    count = len(content["videos"])
    script = (
        "import sys; from pathlib import Path\n"
        "from idol import presets; from idol.masks import rle\n"
        "from pipelines.sources import annotations; from pipelines.stages import pairs\n"
        "rle.compile_kernel()\n"  # 90 MiB, which small sets do without
        "data = annotations.read(sys.argv[1], sys.argv[2]); config = presets.tiny().pairs\n"
        "plan, _ = pairs.deal(data, config, None)\n"
        "shards = ([(data.videos[p.position], p) for p in s] for s in plan)\n"
        "pairs._write_plan(Path(sys.argv[1]).with_suffix('.plan'), shards)\n"
        "print(next(row for row in open('/proc/self/status') if row.startswith('VmHWM')))\n"
    )
    words = [sys.executable, "-c", script, str(many), str(folder / "frames")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return count, int(done.stdout.split()[-2])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="keep the made videos here, and use those there")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    config = override(presets.by_name("ytvis19_r50"), [])
    print(machine.header(machine.command("benchmarks.data")))
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = options.keep or Path(temporary)
        if not (folder / "mp4.json").exists():
            make(folder, options.videos)
        work = Path(temporary) / "work"
        work.mkdir()
        print("\n| what | CPU | ratio |\n|---|---|---|")
        data = {}
        for kind in ("jpeg", "mp4"):
            data[kind] = dataset = annotation_files.read(folder / f"{kind}.json", folder / "frames")
            total = sum(map(len, dataset.videos))
            plain, _ = cpu(partial(floor, dataset, work / f"{kind}.parquet", config))
            counted = Counted()
            ours, _ = cpu(partial(prepared, dataset, work / kind, config))
            print(f"| {kind}: floor | {1e3 * plain / total:.2f} ms a frame | |")
            print(f"| {kind}: prepare | {1e3 * ours / total:.2f} ms a frame | {ours / plain:.2f} |")
            if kind == "mp4":
                print(f"| mp4: decoded frames | | {counted.frames / total:.2f} a frame |")
        files = loaders.Folder(data["jpeg"], config)
        theirs, images = cpu(partial(taken, loaders.torch_batches(files, workers=0)))
        print(f"| DataLoader on JPEG files | {1e3 * theirs / images:.1f} ms an image | |")
        small = override(config, ["pairs.max_side=640"])
        prepared(data["jpeg"], work / "small", small)
        for name, settings in (("jpeg", config), ("small", small)):
            made = loader.ClipLoader(paths.at(work / name), settings, batch=loaders.BATCH)
            started = time.perf_counter()
            batches = stack.enter_context(contextlib.closing(made.batches()))
            first = cpu(partial(next, batches))[0]
            waited = time.perf_counter() - started
            seconds, images = cpu(partial(taken, batches))
            title = "loader" if name == "jpeg" else "loader, frames stored at 640 pixels"
            ratio = seconds / images / (theirs / (2 * loaders.BATCH * _BATCHES))
            print(f"| {title} | {1e3 * seconds / images:.1f} ms an image | {ratio:.2f} |")
            print(f"| {title}: first batch | {waited:.2f} s ({first:.2f} s of CPU) | |")
        (few, first), (many, second) = (growth(folder, "jpeg", times) for times in (1, 10))
        print(f"| driver, {few} videos: peak | {first / 1024:.0f} MiB | |")
        print(f"| driver, {many} videos: peak | {second / 1024:.0f} MiB | |")
        print(f"| driver: growth | {(second - first) / (many - few):.1f} KiB a video | |")
    print(f"\npeak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()
