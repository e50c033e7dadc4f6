"""Error shares: how much AP would be regained if one kind of error did not exist.

Causes are those of `causes.py`. Fixing one changes the flags that AP is made of, at every
IoU threshold, and nothing else:

    class, mask, switch, fragmentation    of the entries with this cause that try one instance which
                                          is still to be found, the one with the highest score finds
                                          it (in the instance's class); the others are taken out
    duplicate, background, both           the entries are taken out
    missed, and switch for an instance    the instance is found: with the mean score of the masks
    hidden in tracks of others            that show it, or, missed, with the median score of the
                                          entries that are right at 0.5, of its class if there are
                                          any

Taking out a wrong entry, making one right, or adding a right one never lowers precision at any
recall. So no fix lowers AP, and fixing all gives 1. What single fixes regain does not add up to
what is missing, as with TIDE: most errors cost little as long as others stand before them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from idol.analysis import intervals
from idol.analysis.causes import CAUSES, Instance, VideoErrors
from idol.arrays import Bools
from idol.evaluation.matching import IOU_THRESHOLDS, VideoMatches

ASSOCIATION = ("switch", "fragmentation")
"""Causes that right identities alone would mend."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoRow:
    """One video's errors, at IoU 0.5.

    ap:        AP of the video alone, all thresholds; -1 without instances
    instances: to be found
    found:     of them, at 0.5
    errors:    cause -> wrong entries and instances nobody tried with this cause, at 0.5
    switches:  times the track that shows an instance changes
    """

    video_id: int
    ap: float
    instances: int
    found: int
    errors: dict[str, int]
    switches: int


@dataclass(frozen=True, slots=True, eq=False)
class ErrorShares:
    """What every kind of error costs a method.

    fixed:       cause -> AP without the errors of this cause alone; all: without any (1, or -1
                 where there is nothing to find); association: without switch and fragmentation
    counts:      cause -> number of errors at IoU 0.5
    videos:      worst first
    instances:   worst first: those lost at most thresholds, of equals those overlapped least
    """

    ap: float
    fixed: dict[str, float]
    counts: dict[str, int]
    videos: tuple[VideoRow, ...]
    instances: tuple[Instance, ...]

    @property
    def regained(self) -> dict[str, float]:
        """Cause -> AP regained by its fix; 0 where there is nothing to find."""
        return {name: self.fixed[name] - self.ap for name in (*CAUSES, "association", "all")}

    def to_dict(self, worst: int) -> dict[str, Any]:
        """As JSON types, with this many of the worst videos and instances."""
        return {
            "AP": self.ap,
            "regained": self.regained,
            "counts": dict(self.counts),
            "worst_videos": [asdict(row) for row in self.videos[:worst]],
            "worst_instances": [asdict(row) for row in self.instances[:worst]],
        }


def summarise(videos: Sequence[VideoErrors]) -> ErrorShares:
    """Reduce the causes of all videos. Raises: ValueError: there is no video."""
    if not videos:
        raise ValueError("there is no video to analyse: the truth lists none")
    found = [i for video in videos for i in video.instances]
    rows = [_row(video) for video in videos]
    return ErrorShares(
        ap=fixed_ap(videos, ()),
        fixed={
            **{name: fixed_ap(videos, (name,)) for name in CAUSES},
            "association": fixed_ap(videos, ASSOCIATION),
            "all": fixed_ap(videos, CAUSES),
        },
        counts={name: sum(row.errors[name] for row in rows) for name in CAUSES},
        videos=tuple(sorted(rows, key=lambda r: (r.ap if r.ap >= 0 else 2.0, r.video_id))),
        instances=tuple(sorted(found, key=lambda i: (-i.lost, i.iou, i.video_id, i.instance_id))),
    )


def fixed_ap(videos: Sequence[VideoErrors], causes: Collection[str]) -> float:
    """AP without the errors of these causes; -1 where there is nothing to find.

    Raises:
        ValueError: a cause is not in CAUSES.
    """
    if unknown := sorted(set(causes) - set(CAUSES)):
        raise ValueError(f"there is no cause {unknown[0]!r}; causes are {', '.join(CAUSES)}")
    typical = _typical_scores(videos)
    matches = [_fixed(video, frozenset(causes), typical) for video in videos]
    once = np.ones((1, len(videos)), np.int64)
    ap = float(intervals.scores_of_draws(matches, once, only=("AP",))["AP"][0])
    return -1.0 if np.isnan(ap) else ap


def _typical_scores(videos: Sequence[VideoErrors]) -> dict[int, float]:
    """category_id -> score that a missed instance would have had; under -1, of any class."""
    of_class: dict[int, list[float]] = {}
    for video in videos:
        for k in np.flatnonzero(video.right[0]):
            of_class.setdefault(int(video.category_ids[k]), []).append(float(video.scores[k]))
    everything = [score for scores in of_class.values() for score in scores]
    return {
        -1: float(np.median(everything)) if everything else 1.0,
        **{c: float(np.median(scores)) for c, scores in of_class.items()},
    }


def _fixed(video: VideoErrors, causes: frozenset[str], typical: dict[int, float]) -> VideoMatches:
    """One video's matches without the errors of these causes, as scoring takes them."""
    numbers = [CAUSES.index(name) for name in causes]
    right, wrong = video.right.copy(), video.wrong.copy()
    new: dict[tuple[str, int], tuple[int, float, Bools]] = {}

    def add(kind: str, number: int, category_id: int, score: float, t: int) -> None:
        """One more right entry at threshold t; one column for whatever it stands for."""
        flags = np.zeros(len(IOU_THRESHOLDS), bool)
        new.setdefault((kind, number), (category_id, score, flags))[2][t] = True

    for t in range(len(IOU_THRESHOLDS)):
        repaired = np.flatnonzero(wrong[t] & np.isin(video.cause[t], numbers))
        wrong[t, repaired] = False
        best: dict[int, int] = {}
        for k in repaired[np.argsort(-video.scores[repaired], kind="stable")].tolist():
            g = int(video.target[t, k])
            if g >= 0 and not video.found[t, g]:
                best.setdefault(g, k)
        for g, k in best.items():
            category_id = int(video.truth_category_ids[g])
            if category_id == video.category_ids[k]:
                right[t, k] = True
            else:
                add("entry", k, category_id, float(video.scores[k]), t)
        for g in np.flatnonzero(np.isin(video.truth_cause[t], numbers)).tolist():
            category_id, name = int(video.truth_category_ids[g]), CAUSES[video.truth_cause[t, g]]
            usual, hidden = typical.get(category_id, typical[-1]), float(video.hidden_scores[g])
            add(name, g, category_id, usual if name == "missed" else hidden, t)
    category_ids = np.append(video.category_ids, [c for c, _, _ in new.values()]).astype(np.int64)
    scores = np.append(video.scores, [score for _, score, _ in new.values()])
    columns = np.array([flags for _, _, flags in new.values()], bool)
    columns = columns.reshape(-1, len(IOU_THRESHOLDS)).T
    right = np.concatenate([right, columns], axis=1)
    ignored = ~right & ~np.concatenate([wrong, np.zeros_like(columns)], axis=1)
    out = VideoMatches(video.video_id, video.categories, ("all",), True, {}, {}, {}, {})
    for category_id in video.categories:
        rows = np.flatnonzero(category_ids == category_id)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        of_class = video.truth_category_ids == category_id
        if of_class.any():
            out.num_truth[category_id] = np.array([(of_class & video.counted).sum()])
        if len(rows):
            out.scores[category_id] = scores[rows]
            out.matched[category_id] = right[None, :, rows]
            out.ignored[category_id] = ignored[None, :, rows]
    return out


def _row(video: VideoErrors) -> VideoRow:
    first = np.concatenate([video.cause[0][video.wrong[0]], video.truth_cause[0]])
    return VideoRow(
        video_id=video.video_id,
        ap=fixed_ap([video], ()),
        instances=int(video.counted.sum()),
        found=int((video.found[0] & video.counted).sum()),
        errors={name: int((first == k).sum()) for k, name in enumerate(CAUSES)},
        switches=sum(instance.switches for instance in video.instances),
    )
