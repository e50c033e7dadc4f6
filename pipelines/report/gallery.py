"""Pictures for the report: a few videos with their masks and identities, found above true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from idol.images import visualize
from pipelines.report.strips import Strip, draw
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset, VideoRecord
from pipelines.storage import stored
from pipelines.storage.reports import VideoMetrics
from pipelines.storage.schemas import ResultTrack
from pipelines.storage.stored import StoredDetections

_FRAMES = 5  # of one strip
_DRAWN_SCORE = 0.3
"""Tracks below this score are many and would hide the picture; a video of which none reaches it
shows its best few."""
_AT_LEAST = 3


def choose(per_video: Sequence[VideoMetrics], count: int) -> list[int]:
    """video_ids worth looking at: evenly from the worst to the best by AP, the worst first."""
    ranked = sorted(per_video, key=lambda row: (row.stats["AP"], row.video_id))
    places = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
    return [ranked[place].video_id for place in places]


def strips(
    dataset: Dataset,
    source: StoredDetections,
    tracks: Path,
    video_ids: Sequence[int],
    notes: Mapping[int, str] | None = None,
) -> list[Strip]:
    """One strip for each of these videos.

    dataset: where the frames and the truth are
    source:  the stored detections that were tracked
    tracks:  a finished track directory
    notes:   video_id -> caption
    """
    records = {video.video_id: video for video in dataset.videos}
    positions = {video.video_id: i for i, video in enumerate(source.videos)}
    return [
        _strip(
            records[video_id],
            stored.read_results(tracks, positions[video_id]),
            dataset,
            (notes or {}).get(video_id, ""),
        )
        for video_id in video_ids
        if video_id in positions
    ]


def drawn(results: Sequence[ResultTrack]) -> list[ResultTrack]:
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
    indices = np.unique(
        np.linspace(0, len(video) - 1, min(_FRAMES, len(video))).round().astype(int)
    )
    images = list(
        frames.read_many(
            [video.frames[i] for i in indices], video_id=video.video_id, size=video.size
        )
    )
    names, labels = dataset.category_names, dataset.labels
    found = [
        (r.track_id, visualize.caption(names[r.label], r.track_id, r.score), r.segmentations)
        for r in drawn(results)
    ]
    true = [
        (g, visualize.caption(names[labels[i.category_id]], g), i.segmentations)
        for g, i in enumerate(video.instances)
    ]
    return Strip(
        title=f"video {video.video_id}" + (f", {video.name}" if video.name else ""),
        predictions=draw(images, indices.tolist(), video.size, found),
        truth=draw(images, indices.tolist(), video.size, true) if true else (),
        frame_labels=[f"frame {i}" for i in indices],
        caption=note,
    )
