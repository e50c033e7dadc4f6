"""The rows of one video without Ray, for tests of what is drawn and of what reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from idol.config import PairConfig
from pipelines.errors import VideoError
from pipelines.sources.annotations import VideoRecord
from pipelines.stages import pairs, shard_rows

STORED = PairConfig(sampling="stored")


def pairs_of_video(
    video: VideoRecord, config: PairConfig, labels: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    """The PAIRS rows of one video, in the order drawn; VideoError where a frame cannot be read."""
    for pair in pairs.draw(video, config):
        rows, faults = shard_rows.fill_pairs(
            [shard_rows.planned_pair(video, *pair, labels)], config
        )
        if faults:
            raise VideoError(*faults[0])
        yield from rows


def frames_of_video(
    video: VideoRecord, config: PairConfig, labels: Mapping[int, int]
) -> list[dict[str, Any]]:
    """The FRAMES rows of one video; VideoError where a frame cannot be read."""
    plan = [shard_rows.planned_frame(video, t, labels) for t in pairs.usable_frames(video, config)]
    rows, faults = shard_rows.fill_frames(plan, config)
    if faults:
        raise VideoError(*faults[0])
    return rows
