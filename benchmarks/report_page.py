"""Size of the report page of many videos, and the time to make it.

python -m benchmarks.report_page --annotations REAL/instances.json --videos 300 --length 60

The videos are those of the file, again and again, played forth and back where they are to be
longer. What was "found" are the true masks, two identities exchanged from the middle on.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from benchmarks.machine import command, header
from pipelines.report import page, run_page
from pipelines.report.viewer import Evaluated, clip
from pipelines.sources import annotations, frames
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.storage import layout, schemas, tables
from pipelines.storage.manifest import Manifest
from pipelines.storage.reports import EvaluationReport, Selection
from pipelines.storage.schemas import ResultTrack
from pipelines.storage.stored import StoredDetections, StoredVideo


def repeated(dataset: Dataset, count: int, length: int | None) -> Dataset:
    """So many videos, each of at least so many frames."""
    videos = []
    for video_id, video in zip(range(1, count + 1), itertools.cycle(dataset.videos), strict=False):
        order = list(range(len(video)))
        walk = itertools.cycle(order + order[-2:0:-1])
        order = [next(walk) for _ in range(max(length or 0, len(video)))]
        instances = tuple(
            replace(one, segmentations=tuple(one.segmentations[t] for t in order), boxes=())
            for one in video.instances
        )
        frames = tuple(video.frames[t] for t in order)
        videos.append(replace(video, video_id=video_id, frames=frames, instances=instances))
    return replace(dataset, videos=videos)


def found(video: VideoRecord, labels: dict[int, int]) -> list[ResultTrack]:
    """The true masks; the first two instances change their identities in the middle."""
    half = len(video) // 2
    masks: list[Sequence[bytes | None]] = [one.segmentations for one in video.instances]
    if len(masks) > 1:
        one, two = masks[:2]
        masks[:2] = [(*one[:half], *two[half:]), (*two[:half], *one[half:])]
    return [
        ResultTrack(video.video_id, n, labels[one.category_id], 0.9 - 0.01 * n, tuple(mask))
        for n, (one, mask) in enumerate(zip(video.instances, masks, strict=True))
    ]


def evaluated(name: str, dataset: Dataset, folder: Path) -> Evaluated:
    """An evaluation as its stages would leave it, as far as the page reads it."""
    for position, video in enumerate(dataset.videos):
        rows = [schemas.result_to_row(row) for row in found(video, dataset.labels)]
        tables.commit(schemas.table(rows, schemas.RESULTS), layout.shard_path(folder, position))
    stored = tuple(
        StoredVideo(video_id=video.video_id, size=video.size, length=len(video), shards=(0,))
        for video in dataset.videos
    )
    made = Manifest(stage="detect", config={"category_ids": list(dataset.category_ids)})
    empty: dict[str, Any] = {key: {} for key in ("metrics", "frame_oracle", "upper_bound")}
    report = EvaluationReport(
        videos=len(stored),
        frames=sum(video.length for video in stored),
        sources=dataset.sources,
        rejects=[],
        config={},
        selection=Selection(
            annotations=dataset.sources[0], frames=None, videos=None, stride=1, input_hash="x"
        ),
        per_category=[],
        per_video=[],
        missing_videos=[],
        **empty,
    )
    source = StoredDetections(folder, made, stored)
    return Evaluated(name=name, report=report, dataset=dataset, source=source, tracks=folder)


def codecs(dataset: Dataset, count: int) -> None:
    """Bytes and time of a frame of a clip, by what could carry it, on the first videos."""
    images: list[list[clip.Image]] = []
    maps = 0
    for video in dataset.videos[:count]:
        size = clip.clip_size(video.size, 0)
        read = frames.read_many(video.frames, video_id=video.video_id, size=video.size)
        images.append([clip.shrunk(image, size) for image in read])
        layers = {"truth": [one.segmentations for one in video.instances]}
        made = clip.make(images[-1], range(len(video)), layers, video.size, 10**9)
        maps += len(made.maps["truth"])
    total = sum(map(len, images))
    print(f"\n{len(images)} videos, {total} frames, {images[0][0].shape[1]} pixels across\n")
    print("| a frame as | kB | ms |\n|---|---|---|")
    webp, jpeg = [cv2.IMWRITE_WEBP_QUALITY, 55], [cv2.IMWRITE_JPEG_QUALITY, 60]
    encoders: dict[str, Callable[[list[clip.Image]], int]] = {
        "JPEG, quality 60": lambda video: sum(
            len(cv2.imencode(".jpg", image[..., ::-1], jpeg)[1]) for image in video
        ),
        "WebP, quality 55": lambda video: sum(
            len(cv2.imencode(".webp", image[..., ::-1], webp)[1]) for image in video
        ),
        "VP9, quality 40": lambda video: len(clip.film(video, 40)),
        "VP9, quality 48": lambda video: len(clip.film(video, 48)),
    }
    for name, encode in encoders.items():
        started = time.process_time()
        size_of = sum(map(encode, images))
        took = 1000 * (time.process_time() - started) / total
        print(f"| {name} | {size_of / total / 1000:.1f} | {took:.1f} |")
    print(f"| map of identities, deflated | {maps / total / 1000:.1f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--videos", type=int, nargs="+", default=[30, 300, 1000])
    parser.add_argument("--length", type=int, default=None, help="frames, at least")
    parser.add_argument("--runs", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, default=None, help="keep the last page here")
    parser.add_argument("--codecs", type=int, default=0, help="of so many videos, and no page")
    given = parser.parse_args()
    print(header(command("benchmarks.report_page")))
    if given.codecs:
        codecs(annotations.read(given.annotations), given.codecs)
        return
    print("\n| videos | frames | runs | page, MB | clips | frames of a clip | seconds |")
    print("|---|---|---|---|---|---|---|")
    original = annotations.read(given.annotations)
    for count in given.videos:
        dataset = repeated(original, count, given.length)
        with tempfile.TemporaryDirectory() as folder:
            runs = [
                evaluated(f"run {n}", dataset, Path(folder) / str(n)) for n in range(given.runs)
            ]
            started = time.perf_counter()
            made = page.Report(title=f"{count} videos", **run_page.evaluation_part(runs))
            text = page.render(made)
            seconds = time.perf_counter() - started
        clips = [video["frames"] for video in made.viewer.data["videos"] if "clip" in video]
        shown = sum(map(len, clips)) / max(1, len(clips))
        many = sum(len(video) for video in dataset.videos)
        print(
            f"| {count} | {many} | {given.runs} | {len(text.encode()) / 1e6:.1f} | {len(clips)} "
            f"| {shown:.1f} | {seconds:.0f} |"
        )
        if given.out:
            given.out.write_text(text)


if __name__ == "__main__":
    main()
