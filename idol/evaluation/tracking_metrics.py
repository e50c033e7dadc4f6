"""HOTA, CLEAR and identity metrics on masks, equal to TrackEval's of YouTube-VIS: map, reduce.

    count_video(results of a video, its truth) -> VideoTracking     any number, anywhere
    summarise_tracking(all VideoTracking)      -> TrackingMetrics   once

Results become tracks as in TrackEval: every entry is a track of its own category, whatever its
score, and categories are scored apart. Masks of a frame may overlap, and one object submitted under
two categories is a track in each. `TrackingOptions` names the choices that TrackEval does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from idol.arrays import Bools, Floats, Ints
from idol.evaluation.overlaps import TrackOverlaps, ratio, track_overlaps
from idol.evaluation.tracking_counts import ALPHAS, Frame, TrackingCounts, count_frames
from idol.ytvis.truth import VideoTruth

PER_ALPHA = ("HOTA", "DetA", "AssA", "LocA", "DetRe", "DetPr", "AssRe", "AssPr")
"""Metrics with a value at each of ALPHAS; the one in `values` is their mean."""
COUNTS = ("TP", "FN", "FP", "IDSW", "Frag", "MT", "PT", "ML", "IDTP", "IDFN", "IDFP")
"""Metrics that are counts; averages over classes have their sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingOptions:
    """How results become tracks. The defaults are TrackEval's."""

    min_score: float = -np.inf
    """Entries with a lower score are left out. Average precision ranks by score, tracking metrics
    do not: every low-scored entry is all false positives here, so submissions made for AP score low
    until such a threshold cuts them."""
    one_class: bool = False
    """Entries with identical masks are one object; only its best-scored category is a track."""
    empty_masks: Literal["detections", "absent"] = "detections"
    """What a mask without a pixel is. TrackEval counts it as a detection, thus as a false positive;
    released VIS code writes such masks where a track is absent."""

    def __post_init__(self) -> None:
        if np.isnan(self.min_score):
            raise ValueError("min_score must be a number, got nan")
        if self.empty_masks not in ("detections", "absent"):
            raise ValueError(
                f"empty_masks must be 'detections' or 'absent', got {self.empty_masks!r}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class TrackingScores:
    """Tracking metrics of one class, or averaged over classes.

    values:    HOTA, DetA, AssA, LocA, DetRe, DetPr, AssRe, AssPr (means over ALPHAS), HOTA(0) (at
               the lowest alpha), MOTSA, sMOTSA, MOTSP, IDF1, IDR, IDP, and counts: TP, FN, FP (of
               CLEAR), IDSW (identity switches), Frag, MT, PT, ML, IDTP, IDFN, IDFP. On masks
               TrackEval's MOTA, sMOTA and MOTP are MOTSA, sMOTSA and MOTSP
    per_alpha: name -> (19,), for PER_ALPHA
    """

    values: dict[str, float]
    per_alpha: dict[str, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class VideoTracking:
    """Counts of one video. Small, picklable, the unit of the map.

    video_id:   of the data set
    categories: category_id of every class of the data set
    counts:     category_id -> counts, for the classes that truth or tracks of this video have
    """

    video_id: int
    categories: tuple[int, ...]
    counts: dict[int, TrackingCounts]


@dataclass(frozen=True, slots=True, eq=False)
class TrackingMetrics:
    """Tracking metrics of a whole data set.

    per_class:          category_id -> scores, for every class of the data set
    class_averaged:     mean over all classes, TrackEval's `cls_comb_cls_av`. A class with neither
                        truth nor tracks scores 0 there (LocA 1) and enters the mean
    present_averaged:   mean over the classes that have truth, as average precision is averaged
    detection_averaged: of the counts of all classes together, TrackEval's `cls_comb_det_av`
    num_videos:         videos counted
    """

    per_class: dict[int, TrackingScores]
    class_averaged: TrackingScores
    present_averaged: TrackingScores
    detection_averaged: TrackingScores
    num_videos: int

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves over alpha, as JSON types (category ids become strings)."""
        return {
            "class_averaged": dict(self.class_averaged.values),
            "present_averaged": dict(self.present_averaged.values),
            "detection_averaged": dict(self.detection_averaged.values),
            "per_class": {str(c): dict(s.values) for c, s in self.per_class.items()},
            "num_videos": self.num_videos,
        }


def count_video(
    results: Sequence[Mapping[str, Any]],
    truth: VideoTruth,
    indices: Sequence[int] | None = None,
    options: TrackingOptions = TrackingOptions(),
) -> VideoTracking:
    """Count one video's result entries against its truth.

    results: N entries of this video
    truth:   of this video, with masks
    indices: (N,) positions in the whole file, for messages; None: positions in `results`
    options: how entries become tracks
    Raises: ValueError: names the index of the first malformed entry.
    """
    overlaps = track_overlaps(results, truth, indices)
    scores = np.array([entry["score"] for entry in results], np.float64)
    kept = scores >= options.min_score
    if options.one_class:
        kept &= _best_of_equals(results, scores)
    return count_overlaps(
        truth.video_id,
        truth.categories,
        overlaps,
        truth_categories=truth.category_ids,
        track_categories=np.array([entry["category_id"] for entry in results], np.int64),
        kept=kept,
        empty_masks=options.empty_masks,
    )


def _best_of_equals(results: Sequence[Mapping[str, Any]], scores: Floats) -> Bools:
    """(N,) False where an entry before, or one of a higher score, has the same masks."""
    best: dict[tuple[Any, ...], int] = {}
    for n in np.argsort(-scores, kind="stable"):
        masks = results[n]["segmentations"]
        best.setdefault(tuple(None if m is None else m["counts"] for m in masks), int(n))
    kept = np.zeros(len(results), bool)
    kept[list(best.values())] = True
    return kept


def count_overlaps(
    video_id: int,
    categories: Sequence[int],
    overlaps: TrackOverlaps,
    *,
    truth_categories: NDArray[Any],
    track_categories: NDArray[Any],
    kept: Bools | None = None,
    empty_masks: Literal["detections", "absent"] = "detections",
) -> VideoTracking:
    """Count one video from the overlaps of its masks, class by class.

    video_id:         of the data set
    categories:       category_id of every class of the data set
    overlaps:         of N tracks and G instances in T frames
    truth_categories: (G,) category_id; track_categories: (N,) category_id
    kept:             (N,) False: this track is left out. None: all are kept
    empty_masks:      as in TrackingOptions
    """
    seen, truth_seen = overlaps.present, overlaps.truth_present
    if empty_masks == "absent":
        seen, truth_seen = overlaps.area > 0, overlaps.truth_area > 0
    used = np.ones(len(seen), bool) if kept is None else kept
    counts: dict[int, TrackingCounts] = {}
    for category_id in categories:
        columns = np.flatnonzero(truth_categories == category_id)
        rows = np.flatnonzero((track_categories == category_id) & used)
        if not len(columns) and not len(rows):
            continue
        counts[category_id] = _count_class(overlaps, rows, columns, seen, truth_seen)
    return VideoTracking(video_id, tuple(categories), counts)


def _count_class(
    overlaps: TrackOverlaps,
    rows: Ints,
    columns: Ints,
    seen: Bools,
    truth_seen: Bools,
) -> TrackingCounts:
    """Counts of the tracks `rows` against the instances `columns`."""
    if not len(rows) or not len(columns):
        return TrackingCounts(
            truth=int(truth_seen[columns].sum()),
            found=int(seen[rows].sum()),
            mostly_lost=int(truth_seen[columns].any(axis=1).sum()),
        )
    shared = overlaps.intersection[:, rows][:, :, columns].astype(np.float64)
    areas = overlaps.area[rows].T[:, :, None]
    union = areas + overlaps.truth_area[columns].T[:, None, :] - shared
    similarity = ratio(shared, union).transpose(0, 2, 1)
    frames: list[Frame] = []
    for t in range(len(similarity)):
        g, n = np.flatnonzero(truth_seen[columns, t]), np.flatnonzero(seen[rows, t])
        frames.append((g, n, similarity[t][np.ix_(g, n)]))
    return count_frames(frames, len(columns), len(rows))


def summarise_tracking(videos: Iterable[VideoTracking]) -> TrackingMetrics:
    """Reduce the counts of all videos, in any order, to the data set's metrics.

    Raises: ValueError: for no video, one video twice, or videos of different data sets.
    """
    ordered = sorted(videos, key=lambda v: v.video_id)
    if not ordered:
        raise ValueError("there is no video to score: the truth lists none, or none was counted")
    for before, after in pairwise(ordered):
        if before.video_id == after.video_id:
            raise ValueError(f"video {after.video_id} was counted twice; pass each video once")
        if before.categories != after.categories:
            raise ValueError(
                f"videos {before.video_id} and {after.video_id} were counted against truth with "
                "different categories; read all of it from one file"
            )
    sums = {category_id: TrackingCounts() for category_id in ordered[0].categories}
    for video in ordered:
        for category_id, counts in video.counts.items():
            sums[category_id] += counts
    per_class = {category_id: scores_of(counts) for category_id, counts in sums.items()}
    return TrackingMetrics(
        per_class=per_class,
        class_averaged=_mean(list(per_class.values())),
        present_averaged=_mean([per_class[c] for c, counts in sums.items() if counts.truth]),
        detection_averaged=scores_of(sum(sums.values(), TrackingCounts())),
        num_videos=len(ordered),
    )


def scores_of(counts: TrackingCounts) -> TrackingScores:
    """The metrics of these counts."""
    tp = counts.hota_tp.astype(np.float64)
    fn, fp = counts.truth - tp, counts.found - tp
    detection = tp / np.maximum(1.0, tp + fn + fp)
    association = counts.association / np.maximum(1.0, tp)
    per_alpha = {
        "HOTA": np.sqrt(detection * association),
        "DetA": detection,
        "AssA": association,
        # 1 where nothing is matched, as TrackEval has it
        "LocA": np.maximum(1e-10, counts.similarity) / np.maximum(1e-10, tp),
        "DetRe": tp / np.maximum(1.0, tp + fn),
        "DetPr": tp / np.maximum(1.0, tp + fp),
        "AssRe": counts.recall / np.maximum(1.0, tp),
        "AssPr": counts.precision / np.maximum(1.0, tp),
    }
    clear_fp = counts.found - counts.clear_tp
    identity_fn, identity_fp = counts.truth - counts.identity_tp, counts.found - counts.identity_tp
    identity_all = counts.identity_tp + 0.5 * identity_fn + 0.5 * identity_fp
    values = {
        **{name: float(value.mean()) for name, value in per_alpha.items()},
        "HOTA(0)": float(per_alpha["HOTA"][0]),
        "MOTSA": (counts.clear_tp - clear_fp - counts.switches) / max(1, counts.truth),
        "sMOTSA": (counts.clear_similarity - clear_fp - counts.switches) / max(1, counts.truth),
        "MOTSP": counts.clear_similarity / max(1, counts.clear_tp),
        "IDF1": counts.identity_tp / max(1.0, identity_all),
        "IDR": counts.identity_tp / max(1, counts.truth),
        "IDP": counts.identity_tp / max(1, counts.found),
        "TP": counts.clear_tp,
        "FN": counts.truth - counts.clear_tp,
        "FP": clear_fp,
        "IDSW": counts.switches,
        "Frag": counts.fragmentations,
        "MT": counts.mostly_tracked,
        "PT": counts.partly_tracked,
        "ML": counts.mostly_lost,
        "IDTP": counts.identity_tp,
        "IDFN": identity_fn,
        "IDFP": identity_fp,
    }
    return TrackingScores(values, per_alpha)


def _mean(classes: Sequence[TrackingScores]) -> TrackingScores:
    """Mean of every metric over classes, and sum of every count; of no class, as of no truth."""
    rows = list(classes) or [scores_of(TrackingCounts())]
    per_alpha = {name: np.mean([row.per_alpha[name] for row in rows], axis=0) for name in PER_ALPHA}
    values: dict[str, float] = {
        name: sum(row.values[name] for row in rows)
        if name in COUNTS
        else float(np.mean([row.values[name] for row in rows]))
        for name in rows[0].values
    }
    return TrackingScores(values, per_alpha)


DRAWN = ("HOTA", "DetA", "AssA", "IDF1")
"""Metrics that `tracking_of_draws` computes."""


def tracking_of_draws(counts: Sequence[VideoTracking], weights: Ints) -> dict[str, Floats]:
    """Tracking metrics of every draw, as `summarise_tracking(...).present_averaged` has them.

    Counts of videos add, so a draw is a weighted sum of them.

    counts:  of V videos
    weights: (B, V) how often a draw has each video, in the order of ascending video ids
    returns: HOTA, DetA, AssA, IDF1 -> (B,); NaN where a draw has no true instance
    """
    videos = sorted(counts, key=lambda v: v.video_id)
    if not videos or weights.shape[1] != len(videos):
        raise ValueError(
            f"weights must have one column for each of {len(videos)} videos, got {weights.shape}"
        )
    drawn = weights.astype(np.float64)
    sums = {name: np.zeros(len(drawn)) for name in DRAWN}
    classes = np.zeros(len(drawn))
    for category_id in videos[0].categories:
        known = [v.counts.get(category_id) for v in videos]
        if all(c is None for c in known):
            continue
        of_class = [TrackingCounts() if c is None else c for c in known]
        truth, found, identity = (
            drawn @ np.array([getattr(c, name) for c in of_class], np.float64)
            for name in ("truth", "found", "identity_tp")
        )
        present = truth > 0
        classes += present
        tp = drawn @ np.array([c.hota_tp for c in of_class], np.float64).reshape(-1, len(ALPHAS))
        fits = drawn @ np.array([c.association for c in of_class]).reshape(-1, len(ALPHAS))
        detection = tp / np.maximum(1.0, truth[:, None] + found[:, None] - tp)
        association = fits / np.maximum(1.0, tp)
        sums["HOTA"] += present * np.sqrt(detection * association).mean(axis=1)
        sums["DetA"] += present * detection.mean(axis=1)
        sums["AssA"] += present * association.mean(axis=1)
        sums["IDF1"] += present * identity / np.maximum(1.0, (truth + found) / 2)
    return {name: total / np.where(classes > 0, classes, np.nan) for name, total in sums.items()}
