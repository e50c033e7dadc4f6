"""The pairs of one video without Ray, for tests of what is drawn and of what reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from idol.config import PairConfig
from pipelines.errors import VideoError
from pipelines.sources.annotations import VideoRecord
from pipelines.stages import pair_rows, pairs


def pairs_of_video(
    video: VideoRecord, config: PairConfig, labels: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    """The PAIRS rows of one video, in the order drawn; VideoError where a frame cannot be read."""
    for key, reference in pairs.draw(video, config):
        stored, faults = pair_rows.fill([pair_rows.planned(video, key, reference, labels)], config)
        if faults:
            raise VideoError(*faults[0])
        yield from stored
