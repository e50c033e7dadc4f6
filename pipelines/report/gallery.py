"""Pictures for the report: a few videos with their masks and identities, found above true."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from idol.images import visualize
from pipelines.errors import VideoError
from pipelines.report.strips import Strip, draw, evenly
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.storage import stored
from pipelines.storage.paths import AnyPath
from pipelines.storage.reports import EvaluationReport
from pipelines.storage.schemas import ResultTrack
from pipelines.storage.stored import StoredDetections

_PICTURES = 4  # videos shown
_FRAMES = 5  # of one strip
_DRAWN_SCORE = 0.3  # tracks below it are many and would hide the picture
_AT_LEAST = 3  # tracks drawn of a video in which none reaches that score


def pictures(
    dataset: Dataset, source: StoredDetections, tracks: AnyPath, report: EvaluationReport
) -> list[Strip]:
    """A few videos, from the worst to the best by AP; without truth, the first ones.

    source: the stored detections that were tracked
    tracks: a finished track directory
    """
    ranked = sorted(report.per_video, key=lambda row: (row.stats["AP"], row.video_id))
    notes = {
        row.video_id: f"AP {100 * row.stats['AP']:.1f}, {row.tracks} tracks for {row.truth} "
        f"instances, {row.switches} identity switches"
        for row in (ranked[place] for place in evenly(len(ranked), _PICTURES))
    }
    if not ranked:
        notes = {video.video_id: "" for video in source.videos[:_PICTURES]}
    records = {video.video_id: video for video in dataset.videos if video.video_id in notes}
    positions = {video.video_id: i for i, video in enumerate(source.videos)}
    return [
        _strip(records[v], stored.read_results(tracks, positions[v], source), dataset, note)
        for v, note in notes.items()
        if v in positions
    ]


def _drawn(results: Sequence[ResultTrack]) -> list[ResultTrack]:
    """What of a video's results is worth drawing: every track once, under its best class."""
    best: dict[int, ResultTrack] = {}
    for result in results:
        if result.track_id not in best or result.score > best[result.track_id].score:
            best[result.track_id] = result
    ranked = sorted(best.values(), key=lambda result: (-result.score, result.track_id))
    strong = [result for result in ranked if result.score >= _DRAWN_SCORE]
    return strong or ranked[:_AT_LEAST]


def _strip(
    video: VideoRecord, results: Sequence[ResultTrack], dataset: Dataset, note: str
) -> Strip:
    indices = evenly(len(video), _FRAMES)
    paths = [video.frames[i] for i in indices]
    read = frames.read_many(paths, video_id=video.video_id, size=video.size)
    images = dict(zip(indices, read, strict=True))
    names = dataset.category_names
    found = [
        (r.track_id, visualize.caption(names[r.label], r.track_id, r.score), r.segmentations)
        for r in _drawn(results)
    ]
    true = _true(video, dataset)
    return Strip(
        title=_title(video),
        predictions=draw(images, video.size, found),
        truth=draw(images, video.size, true) if true else (),
        frame_labels=[f"frame {i}" for i in indices],
        caption=note,
    )


def examples(dataset: Dataset, notes: Mapping[int, str]) -> list[Strip]:
    """The truth of some videos on a few of their frames; without those that cannot be read.

    notes: video_id -> what to write above it
    """
    records = {video.video_id: video for video in dataset.videos if video.video_id in notes}
    made = []
    for video_id, note in notes.items():
        video, images = records[video_id], {}
        for t in evenly(len(video), _FRAMES):
            with contextlib.suppress(VideoError):
                images[t] = frames.read(video.frames[t], video_id=video_id, size=video.size)
        if images:
            true = draw(images, video.size, _true(video, dataset))
            labels = [f"frame {t}" for t in images]
            made.append(Strip(title=_title(video), truth=true, frame_labels=labels, caption=note))
    return made


def _title(video: VideoRecord) -> str:
    return f"video {video.video_id}" + (f", {video.name}" if video.name else "")


def _true(video: VideoRecord, dataset: Dataset) -> list[tuple[int, str, Sequence[bytes | None]]]:
    """The true instances as `draw` takes them."""
    return [
        (g, visualize.caption(dataset.categories[one.category_id], g), one.segmentations)
        for g, one in enumerate(video.instances)
    ]
