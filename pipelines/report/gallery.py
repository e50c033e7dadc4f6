"""Pictures for the page of jobs.check: a few videos with their true masks and identities."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from idol.images import visualize
from pipelines.errors import VideoError
from pipelines.report.strips import Strip, draw, evenly
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset, VideoRecord

_FRAMES = 5  # of one strip


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
