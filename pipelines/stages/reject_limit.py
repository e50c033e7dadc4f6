"""How many videos of a dataset a stage may leave out before the dataset itself is at fault."""

from __future__ import annotations

from collections.abc import Iterable

from idol.ytvis.videos import Reject
from pipelines.errors import PipelineError
from pipelines.sources.annotations import Dataset


def check_rejects(
    dataset: Dataset, rejects: Iterable[Reject], limit: float, field: str
) -> set[int]:
    """Refuse a dataset of which too many videos have a fault.

    rejects: several for one video count once
    limit:   share of the videos that may have a fault, of this field of the configuration
    returns: video_ids of those that have one
    Raises: PipelineError: more than limit of the videos have one.
    """
    first: dict[int, Reject] = {}
    for reject in rejects:
        first.setdefault(reject.video_id, reject)
    total = len(dataset.videos) + len(dataset.rejected_videos)
    if len(first) > limit * total:
        video_id, path, reason = first[min(first)]
        raise PipelineError(
            f"{len(first)} of {total} videos have a fault, more than the limit of {limit:.0%} "
            f"({field}). The first is video {video_id}: {path}: {reason}. "
            f"Mend the data, or raise {field}."
        )
    return set(first)
