"""Which tracks of a video found which true instances: spatio-temporal IoU and greedy matching.

The rules are those of `ytvoseval` and `oviseval` (youtubevos/cocoapi, qjy981010/cocoapi).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from idol.arrays import Bools, Floats, Ints
from idol.evaluation.overlaps import (
    checked_masks,
    spatio_temporal_iou,
)
from idol.ytvis import truth as truth_file
from idol.ytvis.results import MAX_TRACKS
from idol.ytvis.truth import VideoTruth

# The benchmarks' protocol, not ours to tune: hence constants and no configuration.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""(10,) a detection is found right if its spatio-temporal IoU reaches the threshold."""
MAX_DETECTIONS = (1, 10, MAX_TRACKS)
"""Best tracks kept per video and category."""
AREA_RANGES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 128.0**2),
    "medium": (128.0**2, 256.0**2),
    "large": (256.0**2, 1e5**2),
}
"""Average area of a track in pixels, inclusive at both ends."""
OCCLUSION_RANGES = {"slight": (0.0, 0.25), "moderate": (0.25, 0.5), "heavy": (0.5, 1.0)}
"""OVIS occlusion score of an instance, inclusive at both ends."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoMatches:
    """Which tracks of one video found which truth. Small, picklable, the unit of the map.

    S is the number of ranges, R the tracks of a category in this video (at most 100).

    video_id:    of the data set
    categories:  category_id of every class of the data set
    ranges:      S names: all, small, medium, large, and for OVIS slight, moderate, heavy
    has_results: whether any result names this video
    scores:      category_id -> (R,) descending
    matched:     category_id -> (S, 10, R) bool, True where the track found an instance
    ignored:     category_id -> (S, 10, R) bool, True where it counts neither way
    num_truth:   category_id -> (S,) instances to be found; categories without any are absent
    """

    video_id: int
    categories: tuple[int, ...]
    ranges: tuple[str, ...]
    has_results: bool
    scores: dict[int, Floats]
    matched: dict[int, Bools]
    ignored: dict[int, Bools]
    num_truth: dict[int, Ints]


def match_video(
    results: Sequence[Mapping[str, Any]],
    truth: VideoTruth,
    indices: Sequence[int] | None = None,
    *,
    compat: bool = False,
) -> VideoMatches:
    """Match one video's result entries with its truth.

    results: N entries of this video, in the order of the file (it decides between equal scores)
    truth:   of this video, with masks
    indices: (N,) positions in the whole file, for messages; None: positions in `results`
    compat:  as in `evaluate`
    Raises: ValueError: names the index of the first malformed entry.
    """
    masks = checked_masks(results, truth, indices, compat=compat)
    category_ids = np.array([entry["category_id"] for entry in results], np.int64)
    scores = np.array([entry["score"] for entry in results], np.float64)
    wanted = _wanted(category_ids, scores, truth)
    areas, iou = spatio_temporal_iou(masks, truth, wanted, indices, compat=compat)
    return match_entries(
        truth, category_ids, scores, truth_file.average_area(areas), iou, len(results) > 0, compat
    )


def _wanted(category_ids: Ints, scores: Floats, truth: VideoTruth) -> Bools:
    """(N, G) where IoUs are needed: between tracks and truth of one category, of the best 100."""
    same: Bools = category_ids[:, None] == truth.category_ids
    for category_id in np.unique(category_ids[same.any(axis=1)]):
        rows = np.flatnonzero(category_ids == category_id)
        if len(rows) > MAX_DETECTIONS[-1]:
            beyond = np.ones(len(rows), bool)
            beyond[_best_first(scores[rows])] = False
            same[rows[beyond]] = False
    return same


# ---- matching -----------------------------------------------------------------------------------


def _best_first(scores: Floats) -> Ints:
    """Positions of the best 100 scores, descending; equal scores in the order given."""
    order: Ints = np.argsort(-scores, kind="stable")[: MAX_DETECTIONS[-1]]
    return order


def match_entries(
    truth: VideoTruth,
    category_ids: Ints,
    scores: Floats,
    average_areas: Floats,
    iou: Floats,
    has_results: bool,
    compat: bool,
) -> VideoMatches:
    """Match the entries of a video category by category, whatever their IoUs come from.

    truth:         of the video
    category_ids:  (N,) of the entries, in the order of the file
    scores:        (N,)
    average_areas: (N,) pixels in the frames where they are present
    iou:           (N, G) spatio-temporal IoU with the true instances
    has_results:   whether any result names this video
    compat:        as in `evaluate`
    """
    ranges = (*AREA_RANGES, *(OCCLUSION_RANGES if truth.occlusion is not None else ()))
    # A truth id of 0 reads as "not matched" in the official code.
    countable = (truth.instance_ids != 0) | (not compat)
    out = VideoMatches(truth.video_id, truth.categories, ranges, has_results, {}, {}, {}, {})
    all_outside = _outside(average_areas, None, ranges)
    all_ignore = _outside(truth.average_areas, truth.occlusion, ranges) | truth.crowd
    present = {*category_ids.tolist(), *truth.category_ids.tolist()}
    for category_id in sorted(present.intersection(truth.categories)):
        rows = (category_ids == category_id).nonzero()[0]
        columns = (truth.category_ids == category_id).nonzero()[0]
        rows = rows[_best_first(scores[rows])]
        ignore = all_ignore[:, columns]
        matched, ignored = _greedy(
            iou[rows[:, None], columns], ignore, truth.crowd[columns], countable[columns]
        )
        if len(columns):
            out.num_truth[category_id] = (~ignore).sum(axis=1)
        if len(rows):
            out.scores[category_id] = scores[rows]
            out.matched[category_id] = matched
            # What was found nowhere and has another size is not this range's false positive.
            out.ignored[category_id] = ignored | (~matched & all_outside[:, None, rows])
    return out


def _outside(areas: Floats, occlusion: Floats | None, ranges: Sequence[str]) -> Bools:
    """(S, n) True where a track lies outside a range. Predictions have no occlusion score."""
    out = np.zeros((len(ranges), len(areas)), bool)
    for s, name in enumerate(ranges):
        low, high = AREA_RANGES.get(name, AREA_RANGES["all"])
        out[s] = (areas < low) | (areas > high)
        if occlusion is not None and name in OCCLUSION_RANGES:
            low, high = OCCLUSION_RANGES[name]
            out[s] |= (occlusion < low) | (occlusion > high)
    return out


def _greedy(iou: Floats, ignore: Bools, crowd: Bools, countable: Bools) -> tuple[Bools, Bools]:
    """Give each track, best score first, the free instance it overlaps best, per range, threshold.

    iou:       (R, G) tracks in descending score
    ignore:    (S, G) instances that do not count in a range
    crowd:     (G,)   may be found any number of times
    countable: (G,)   False: a match holds the instance but does not count as one
    returns:   matched, ignored (S, 10, R)
    """
    num_ranges, num_truth = ignore.shape
    matched = np.zeros((num_ranges, len(IOU_THRESHOLDS), len(iou)), bool)
    ignored = np.zeros_like(matched)
    if not iou.size:
        return matched, ignored
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    free = np.ones((num_ranges, len(IOU_THRESHOLDS), num_truth), bool)
    s, t = np.ogrid[:num_ranges, : len(IOU_THRESHOLDS)]
    candidates = iou >= thresholds[0]
    for n, number in enumerate(candidates.sum(axis=1).tolist()):
        if not number:
            continue
        if number == 1:  # no choice, as nearly always: the same in a tenth of the time
            g = int(candidates[n].argmax())
            hit = free[..., g] & (iou[n, g] >= thresholds)
            matched[:, :, n] = hit & countable[g]
            ignored[:, :, n] = hit & ignore[:, g, None]
            if not crowd[g]:
                free[..., g] &= ~hit
            continue
        possible = free & (iou[n] >= thresholds[:, None])
        counted = possible & ~ignore[:, None, :]
        # An instance that counts goes before any that does not.
        choice = np.where(counted.any(axis=2, keepdims=True), counted, possible)
        # Of equal IoUs the last wins, hence argmax from behind.
        best = num_truth - 1 - np.where(choice, iou[n], -1.0)[..., ::-1].argmax(axis=2)
        hit = possible.any(axis=2)
        matched[:, :, n] = hit & countable[best]
        ignored[:, :, n] = hit & ignore[s, best]
        free[s, t, best] &= ~hit | crowd[best]
    return matched, ignored
