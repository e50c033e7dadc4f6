"""How many videos of a dataset a stage may leave out before the dataset itself is at fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.errors import PipelineError
from pipelines.sources.annotations import Dataset


def check_rejects(
    dataset: Dataset, rejects: Iterable[Mapping[str, Any]], limit: float, field: str
) -> set[int]:
    """Refuse a dataset of which too many videos have a fault.

    rejects: {video_id, path, reason}, several for one video count once
    limit:   share of the videos that may have a fault
    field:   of the configuration, which holds the limit
    returns: video_ids of those that have one
    Raises: PipelineError: more than limit of the videos have one.
    """
    first: dict[int, Mapping[str, Any]] = {}
    for row in rejects:
        first.setdefault(int(row["video_id"]), row)
    total = len(dataset.videos) + len(dataset.rejected_videos)
    if len(first) > limit * total:
        row = first[min(first)]
        raise PipelineError(
            f"{len(first)} of {total} videos have a fault, more than the limit of {limit:.0%} "
            f"({field}). The first is video {row['video_id']}: {row['path']}: {row['reason']}. "
            f"Mend the data, or raise {field}."
        )
    return set(first)
