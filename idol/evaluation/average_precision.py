"""Average precision of tracks, equal to the official YouTube-VIS and OVIS evaluators: map, reduce.

    match_video(results of a video, its truth) -> VideoMatches      any number, anywhere
    summarise(all VideoMatches)                -> Metrics           once
    evaluate(truth, results)                   -> Metrics           both, for files

The rules are those of `ytvoseval` and `oviseval` (youtubevos/cocoapi, qjy981010/cocoapi).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from idol.arrays import Floats, Ints
from idol.evaluation.matching import IOU_THRESHOLDS, MAX_DETECTIONS, VideoMatches, match_video
from idol.ytvis import results as results_file
from idol.ytvis import truth as truth_file
from idol.ytvis.truth import Truth

_log = logging.getLogger(__name__)

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""(101,) recalls at which precision is averaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """Metrics of a whole data set; -1 where there is no truth to score against.

    stats:          AP, AP50, AP75, APs, APm, APl, [AP_so, AP_mo, AP_ho,] AR1, AR10, AR100, ARs,
                    ARm, ARl, [AR_so, AR_mo, AR_ho] in [0, 1]; bracketed: truth with occlusion only
    per_class:      category_id -> AP, AP50, AP75, AR1, AR10, AR100
    missing_videos: ids of videos with truth but without any result, scored as empty
    num_videos:     videos scored, missing ones included
    categories:     K category ids, the order of the K axes below
    ranges:         S names, the order of the S axes below
    precision:      (10, 101, K, S, 3) at every IoU threshold, recall point, class, range and
                    MAX_DETECTIONS
    recall:         (10, K, S, 3) the highest reached
    """

    stats: dict[str, float]
    per_class: dict[int, dict[str, float]]
    missing_videos: tuple[int, ...]
    num_videos: int
    categories: tuple[int, ...]
    ranges: tuple[str, ...]
    precision: Floats
    recall: Floats

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, as JSON types (category ids become strings)."""
        return {
            "stats": dict(self.stats),
            "per_class": {str(c): dict(row) for c, row in self.per_class.items()},
            "missing_videos": list(self.missing_videos),
            "num_videos": self.num_videos,
        }


def evaluate(
    truth: Truth | Mapping[str, Any] | str | Path,
    results: list[Any] | str | Path,
    *,
    compat: bool = False,
) -> Metrics:
    """Score a results file against the truth.

    truth:   YouTube-VIS or OVIS annotations: path, parsed JSON or `truth.read`'s
    results: path or list of {"video_id", "category_id", "score", "segmentations"}
    compat:  score malformed input as the official evaluator does instead of refusing it
    Raises:
        ValueError: names the first malformed entry by its index.
        IndexError: in compat mode for empty results, which score 0 otherwise.
    """
    known = truth_file.read(truth, compat=compat)
    entries = results_file.read(results)
    if compat and not entries:
        raise IndexError("list index out of range: the official evaluator refuses empty results")
    grouped: dict[int, list[int]] = {video_id: [] for video_id in known.videos}
    for index, entry in enumerate(entries):
        if known.leaves_out(entry):
            continue
        results_file.check_ids(entry, index, known.videos, known.categories, compat=compat)
        grouped[entry["video_id"]].append(index)
    metrics = summarise(
        match_video([entries[i] for i in rows], known.videos[video_id], rows, compat=compat)
        for video_id, rows in grouped.items()
    )
    missing = metrics.missing_videos
    if missing:
        _log.warning(
            "%d of %d videos have no results and are scored as empty: %s",
            len(missing),
            metrics.num_videos,
            ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else ""),
        )
    return metrics


def summarise(matches: Iterable[VideoMatches]) -> Metrics:
    """Reduce the matches of all videos, in any order, to the data set's metrics.

    Raises: ValueError: for no video, one video twice, or videos of different data sets.
    """
    videos = sorted(matches, key=lambda m: m.video_id)
    if not videos:
        raise ValueError("there is no video to score: the truth lists none, or none was matched")
    categories, ranges = videos[0].categories, videos[0].ranges
    for before, after in pairwise(videos):
        if before.video_id == after.video_id:
            raise ValueError(f"video {after.video_id} was matched twice; pass each video once")
        if (after.categories, after.ranges) != (categories, ranges):
            raise ValueError(
                f"videos {videos[0].video_id} and {after.video_id} were matched against truth with "
                "different categories or occlusion; read all of it from one file"
            )
    shape = (len(categories), len(ranges), len(MAX_DETECTIONS))
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS), *shape), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), *shape), -1.0)
    for k, category_id in enumerate(categories):
        truths = [m.num_truth[category_id] for m in videos if category_id in m.num_truth]
        num_truth = np.sum(truths, axis=0) if truths else np.zeros(len(ranges), np.int64)
        if not num_truth.any():
            continue  # false positives of a class without truth count nowhere
        having = [m for m in videos if category_id in m.scores]
        most = max((len(m.scores[category_id]) for m in having), default=0)
        for a, limit in enumerate(MAX_DETECTIONS):
            if a and most <= MAX_DETECTIONS[a - 1]:  # nothing more is kept
                precision[:, :, k, :, a] = precision[:, :, k, :, a - 1]
                recall[:, k, :, a] = recall[:, k, :, a - 1]
                continue
            curve, reached = _accumulate(having, category_id, num_truth, limit)
            precision[:, :, k, :, a] = curve
            recall[:, k, :, a] = reached
    missing = tuple(m.video_id for m in videos if not m.has_results)
    return Metrics(
        stats=_stats(precision, recall, ranges),
        per_class={
            c: _class_stats(precision[:, :, k : k + 1], recall[:, k : k + 1])
            for k, c in enumerate(categories)
        },
        missing_videos=missing,
        num_videos=len(videos),
        categories=categories,
        ranges=ranges,
        precision=precision,
        recall=recall,
    )


def _accumulate(
    videos: Sequence[VideoMatches], category_id: int, num_truth: Ints, limit: int
) -> tuple[Floats, Floats]:
    """Precision (10, 101, S) and recall (10, S) of one class with `limit` tracks per video."""
    num_ranges = len(num_truth)
    precision = np.zeros((len(IOU_THRESHOLDS), len(RECALL_POINTS), num_ranges))
    recall = np.zeros((len(IOU_THRESHOLDS), num_ranges))
    if videos:
        scores = np.concatenate([m.scores[category_id][:limit] for m in videos])
        order = np.argsort(-scores, kind="stable")
        matched = np.concatenate([m.matched[category_id][..., :limit] for m in videos], axis=2)
        ignored = np.concatenate([m.ignored[category_id][..., :limit] for m in videos], axis=2)
        right = np.cumsum((matched & ~ignored)[..., order], axis=2, dtype=np.float64)
        wrong = np.cumsum((~matched & ~ignored)[..., order], axis=2, dtype=np.float64)
        exact = right / (right + wrong + np.spacing(1))
        # Precision at a recall is the best at this or any higher recall.
        best = np.maximum.accumulate(exact[..., ::-1], axis=2)[..., ::-1]
        for s in np.flatnonzero(num_truth):
            recall[:, s] = right[s, :, -1] / num_truth[s]
            # The first track at which a recall is reached is the one that makes the instances
            # found as many as it takes. All thresholds are looked up at once, one after the other.
            fraction = np.arange(num_truth[s] + 1) / num_truth[s]
            needed = np.searchsorted(fraction, RECALL_POINTS, side="left")
            above = (num_truth[s] + 1) * np.arange(len(IOU_THRESHOLDS))[:, None]
            at = np.searchsorted((right[s] + above).ravel(), needed + above, side="left")
            at -= len(order) * np.arange(len(IOU_THRESHOLDS))[:, None]
            inside = at < len(order)
            reached = np.take_along_axis(best[s], np.minimum(at, len(order) - 1), axis=1)
            precision[:, :, s] = np.where(inside, reached, 0.0)
    precision[:, :, num_truth == 0] = -1.0
    recall[:, num_truth == 0] = -1.0
    return precision, recall


def _mean(values: Floats) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def _class_stats(precision: Floats, recall: Floats) -> dict[str, float]:
    """AP, AP50, AP75, AR1, AR10, AR100 of precision (10, 101, K, S, 3) and recall (10, K, S, 3)."""
    everything = precision[:, :, :, 0, -1]
    at = {round(float(threshold) * 100): t for t, threshold in enumerate(IOU_THRESHOLDS)}
    return {
        "AP": _mean(everything),
        "AP50": _mean(everything[at[50]]),
        "AP75": _mean(everything[at[75]]),
        **{f"AR{limit}": _mean(recall[:, :, 0, a]) for a, limit in enumerate(MAX_DETECTIONS)},
    }


def _stats(precision: Floats, recall: Floats, ranges: Sequence[str]) -> dict[str, float]:
    """The official summary, in the official order."""
    suffixes = {"small": "s", "medium": "m", "large": "l"}
    suffixes |= {"slight": "_so", "moderate": "_mo", "heavy": "_ho"}
    named = [(f"{suffixes[name]}", s) for s, name in enumerate(ranges) if name in suffixes]
    whole = _class_stats(precision, recall)
    return {
        **{name: whole[name] for name in ("AP", "AP50", "AP75")},
        **{f"AP{suffix}": _mean(precision[:, :, :, s, -1]) for suffix, s in named},
        **{name: whole[name] for name in ("AR1", "AR10", "AR100")},
        **{f"AR{suffix}": _mean(recall[:, :, s, -1]) for suffix, s in named},
    }
