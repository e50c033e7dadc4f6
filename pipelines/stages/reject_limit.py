"""What a stage leaves out of a dataset: how much of it at most, and one line about it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idol.ytvis.videos import Reject
from pipelines.errors import PipelineError
from pipelines.sources.annotations import Dataset
from pipelines.storage import tables
from pipelines.storage.paths import AnyPath

REJECT_LIMIT = 0.1
"""Share of the videos that may have a fault; with more, the dataset itself is at fault."""

_log = logging.getLogger(__name__)


def check_rejects(
    dataset: Dataset, rejects: Iterable[Reject], limit: float | None = None
) -> set[int]:
    """Refuse a dataset of which too many videos have a fault.

    rejects: several for one video count once
    limit:   share of the videos that may have a fault; None: REJECT_LIMIT
    returns: video_ids of those that have one
    Raises:
        PipelineError: more than limit of the videos have one.
        ValueError: the limit is no share.
    """
    limit = REJECT_LIMIT if limit is None else limit
    if not 0 <= limit <= 1:
        raise ValueError(f"the reject limit must lie in [0, 1], got {limit}")
    first: dict[int, Reject] = {}
    for reject in rejects:
        first.setdefault(reject.video_id, reject)
    if first and len(first) / _total(dataset) > limit:
        video_id, path, reason = first[min(first)]
        raise PipelineError(
            f"{len(first)} of {_total(dataset)} videos have a fault, more than the limit of "
            f"{limit:.0%}. The first is video {video_id}: {path}: {reason}. Mend the data, or "
            "raise the limit with --reject-limit."
        )
    return set(first)


def tell_rejects(dataset: Dataset, out: AnyPath, rejects: Sequence[Mapping[str, Any]]) -> None:
    """Say in one line what a finished output lacks: how many videos, the first reason, the list.

    rejects: {video_id, path, reason} of each fault and, where there are several, its effect
    """
    if not rejects:
        return
    effects = {row["video_id"]: row.get("effect", "left out") for row in rejects}
    counts = Counter(effects.values()).items()
    _log.warning(
        "%s; the first is video %d: %s: %s. All are listed in %s",
        ", ".join(f"{count} of {_total(dataset)} videos {effect}" for effect, count in counts),
        *(rejects[0][name] for name in ("video_id", "path", "reason")),
        out / tables.REJECTS,
    )


def _total(dataset: Dataset) -> int:
    return len(dataset.videos) + len(dataset.rejected_videos)
