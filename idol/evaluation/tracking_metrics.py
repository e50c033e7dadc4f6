"""HOTA, CLEAR and identity metrics on masks, equal to TrackEval's of YouTube-VIS: map, reduce.

    count_video(results of a video, its truth) -> VideoTracking     any number, anywhere
    summarise_tracking(all VideoTracking)      -> TrackingMetrics   once
    count_tracks(ids and similarities)         -> TrackingCounts    of plain arrays

Results become tracks as in TrackEval: every entry is a track of its own category, whatever its
score, and categories are scored apart. Masks of a frame may overlap, and one object submitted under
two categories is a track in each. `TrackingOptions` names the choices that TrackEval does not have.

Sources: J. Luiten et al., HOTA (IJCV 2021); Voigtlaender et al., MOTS (CVPR 2019); Ristani et al.,
IDF1 (2016); rules where those leave a choice: JonathonLuiten/TrackEval.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from idol.arrays import Floats, Ints
from idol.evaluation.overlaps import TrackOverlaps, ratio, track_overlaps
from idol.ytvis.truth import VideoTruth

Frame = tuple[Ints, Ints, Floats]
"""One frame: (g,) rows of the instances seen, (n,) rows of the tracks seen, (g, n) similarity."""

_log = logging.getLogger(__name__)

# TrackEval's protocol, not ours to tune: hence constants and no configuration.
ALPHAS = np.arange(0.05, 0.99, 0.05)
"""(19,) localisation thresholds that HOTA is averaged over."""
SIMILARITY_THRESHOLD = 0.5
"""Mask IoU from which CLEAR and identity metrics take a detection to show an instance."""
_KEEP = 1000.0  # CLEAR: continuing the last frame's pair outweighs any similarity
_EPS = float(np.finfo(np.float64).eps)

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
class TrackingCounts:
    """What the metrics are ratios of, as sums: counts of two videos or classes add with `+`.

    truth, found:    masks of true instances and of tracks, over all frames
    hota_tp:         (19,) matched masks at every alpha
    similarity:      (19,) their similarity, summed
    association:     (19,) over matched masks, sum of TPA / (TPA + FNA + FPA) of their pair
    recall:          (19,) the same, TPA / (TPA + FNA)
    precision:       (19,) the same, TPA / (TPA + FPA)
    clear_tp:        masks matched by CLEAR, which prefers the last frame's pairs
    clear_similarity: their similarity, summed
    switches:        identity switches
    fragmentations:  times that an instance is found again after a gap
    mostly_tracked, partly_tracked, mostly_lost: instances found in over 80 %, from 20 to 80 %,
                     under 20 % of their frames
    identity_tp:     masks matched by the best one-to-one assignment of whole tracks to instances
    """

    truth: int
    found: int
    hota_tp: Ints
    similarity: Floats
    association: Floats
    recall: Floats
    precision: Floats
    clear_tp: int
    clear_similarity: float
    switches: int
    fragmentations: int
    mostly_tracked: int
    partly_tracked: int
    mostly_lost: int
    identity_tp: int

    @staticmethod
    def none() -> TrackingCounts:
        """Of a class or video with neither truth nor tracks."""
        return _unmatched(0, 0, 0)

    def __add__(self, other: TrackingCounts) -> TrackingCounts:
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in dataclasses.fields(self)
        }
        return TrackingCounts(**sums)

    def scores(self) -> TrackingScores:
        """The metrics of these counts."""
        tp = self.hota_tp.astype(np.float64)
        fn, fp = self.truth - tp, self.found - tp
        detection = tp / np.maximum(1.0, tp + fn + fp)
        association = self.association / np.maximum(1.0, tp)
        per_alpha = {
            "HOTA": np.sqrt(detection * association),
            "DetA": detection,
            "AssA": association,
            # 1 where nothing is matched, as TrackEval has it
            "LocA": np.maximum(1e-10, self.similarity) / np.maximum(1e-10, tp),
            "DetRe": tp / np.maximum(1.0, tp + fn),
            "DetPr": tp / np.maximum(1.0, tp + fp),
            "AssRe": self.recall / np.maximum(1.0, tp),
            "AssPr": self.precision / np.maximum(1.0, tp),
        }
        clear_fp = self.found - self.clear_tp
        identity_fn, identity_fp = self.truth - self.identity_tp, self.found - self.identity_tp
        identity_all = self.identity_tp + 0.5 * identity_fn + 0.5 * identity_fp
        values = {
            **{name: float(value.mean()) for name, value in per_alpha.items()},
            "HOTA(0)": float(per_alpha["HOTA"][0]),
            "MOTSA": (self.clear_tp - clear_fp - self.switches) / max(1, self.truth),
            "sMOTSA": (self.clear_similarity - clear_fp - self.switches) / max(1, self.truth),
            "MOTSP": self.clear_similarity / max(1, self.clear_tp),
            "IDF1": self.identity_tp / max(1.0, identity_all),
            "IDR": self.identity_tp / max(1, self.truth),
            "IDP": self.identity_tp / max(1, self.found),
            "TP": self.clear_tp,
            "FN": self.truth - self.clear_tp,
            "FP": clear_fp,
            "IDSW": self.switches,
            "Frag": self.fragmentations,
            "MT": self.mostly_tracked,
            "PT": self.partly_tracked,
            "ML": self.mostly_lost,
            "IDTP": self.identity_tp,
            "IDFN": identity_fn,
            "IDFP": identity_fp,
        }
        return TrackingScores(values, per_alpha)


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


# ---- map ----------------------------------------------------------------------------------------


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
    Errors: ValueError with the index of the first malformed entry.
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


def _best_of_equals(results: Sequence[Mapping[str, Any]], scores: Floats) -> NDArray[np.bool_]:
    """(N,) False where an entry before, or one of a higher score, has the same masks."""
    best: dict[tuple[Any, ...], int] = {}
    for n in np.argsort(-scores, kind="stable"):
        masks = results[n]["segmentations"]
        best.setdefault(tuple(None if m is None else m["counts"] for m in masks), int(n))
    kept = np.zeros(len(results), bool)
    kept[list(best.values())] = True
    return kept


def count_tracks(
    truth_ids: Sequence[NDArray[Any] | Sequence[int]],
    track_ids: Sequence[NDArray[Any] | Sequence[int]],
    similarity: Sequence[NDArray[Any]],
) -> TrackingCounts:
    """Count one video and class from ids and similarities alone, of masks, boxes or anything.

    truth_ids:  per frame (g,) whole numbers, the instances seen
    track_ids:  per frame (n,) whole numbers, the tracks seen
    similarity: per frame (g, n) in [0, 1]
    Errors: ValueError with the frame: shapes that do not agree, an id twice in one frame, a
    similarity outside [0, 1].
    """
    if not len(truth_ids) == len(track_ids) == len(similarity):
        raise ValueError(
            f"truth_ids, track_ids and similarity must cover the same frames, got "
            f"{len(truth_ids)}, {len(track_ids)} and {len(similarity)}"
        )
    rows: list[list[Ints]] = []
    totals: list[int] = []
    for name, ids in (("truth_ids", truth_ids), ("track_ids", track_ids)):
        frames = [_ids(name, t, values) for t, values in enumerate(ids)]
        known, row = np.unique(
            np.concatenate([np.empty(0, np.int64), *frames]), return_inverse=True
        )
        rows.append(np.split(row.astype(np.int64), np.cumsum([len(f) for f in frames])[:-1]))
        totals.append(len(known))
    counted: list[Frame] = []
    for t, (g, n, given) in enumerate(zip(*rows, similarity, strict=True) if similarity else ()):
        values = np.asarray(given, np.float64)
        if not values.size and not (len(g) and len(n)):
            values = values.reshape(len(g), len(n))
        if values.shape != (len(g), len(n)):
            raise ValueError(
                f"similarity[{t}] must have shape (g, n) = {(len(g), len(n))}, got {values.shape}"
            )
        # An IoU of 1 may be computed as the number after it.
        if not ((values >= 0) & (values <= 1 + 1e-6)).all():
            raise ValueError(f"similarity[{t}] must lie in [0, 1]; it holds nan or other numbers")
        counted.append((g, n, values))
    return _count(counted, *totals)


def _ids(name: str, frame: int, values: NDArray[Any] | Sequence[int]) -> Ints:
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f"{name}[{frame}] must be a list of whole numbers, got {ids.dtype} of shape {ids.shape}"
        )
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"{name}[{frame}] names an id twice; in one frame it can be seen once")
    return ids.astype(np.int64)


def count_overlaps(
    video_id: int,
    categories: Sequence[int],
    overlaps: TrackOverlaps,
    *,
    truth_categories: NDArray[Any],
    track_categories: NDArray[Any],
    kept: NDArray[np.bool_] | None = None,
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
    seen: NDArray[np.bool_],
    truth_seen: NDArray[np.bool_],
) -> TrackingCounts:
    """Counts of the tracks `rows` against the instances `columns`."""
    if not len(rows) or not len(columns):
        return _unmatched(
            int(truth_seen[columns].sum()),
            int(seen[rows].sum()),
            int(truth_seen[columns].any(axis=1).sum()),
        )
    shared = overlaps.intersection[:, rows][:, :, columns].astype(np.float64)
    areas = overlaps.area[rows].T[:, :, None]
    union = areas + overlaps.truth_area[columns].T[:, None, :] - shared
    similarity = ratio(shared, union).transpose(0, 2, 1)
    frames: list[Frame] = []
    for t in range(len(similarity)):
        g, n = np.flatnonzero(truth_seen[columns, t]), np.flatnonzero(seen[rows, t])
        frames.append((g, n, similarity[t][np.ix_(g, n)]))
    return _count(frames, len(columns), len(rows))


def _unmatched(truth: int, found: int, instances: int) -> TrackingCounts:
    """Counts where masks of truth, or of tracks, have nothing to be matched with."""
    none = np.zeros(len(ALPHAS))
    return TrackingCounts(
        truth=truth,
        found=found,
        hota_tp=none.astype(np.int64),
        similarity=none,
        association=none,
        recall=none,
        precision=none,
        clear_tp=0,
        clear_similarity=0.0,
        switches=0,
        fragmentations=0,
        mostly_tracked=0,
        partly_tracked=0,
        mostly_lost=instances,
        identity_tp=0,
    )


def _count(frames: Sequence[Frame], num_truth: int, num_tracks: int) -> TrackingCounts:
    """All counts of one video and class; num_truth and num_tracks are the numbers of rows."""
    truth_frames = np.zeros(num_truth, np.int64)
    track_frames = np.zeros(num_tracks, np.int64)
    for g, n, _ in frames:
        truth_frames[g] += 1
        track_frames[n] += 1
    if not truth_frames.any() or not track_frames.any():
        instances = int((truth_frames > 0).sum())
        return _unmatched(int(truth_frames.sum()), int(track_frames.sum()), instances)
    hota_tp, similarity, association, recall, precision = _hota(frames, truth_frames, track_frames)
    clear_tp, clear_similarity, switches, again, mostly, partly, lost = _clear(frames, truth_frames)
    return TrackingCounts(
        truth=int(truth_frames.sum()),
        found=int(track_frames.sum()),
        hota_tp=hota_tp,
        similarity=similarity,
        association=association,
        recall=recall,
        precision=precision,
        clear_tp=clear_tp,
        clear_similarity=clear_similarity,
        switches=switches,
        fragmentations=again,
        mostly_tracked=mostly,
        partly_tracked=partly,
        mostly_lost=lost,
        identity_tp=_identity(frames, num_truth, num_tracks),
    )


def _hota(
    frames: Sequence[Frame], truth_frames: Ints, track_frames: Ints
) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """HOTA's matching: hota_tp, similarity, association, recall and precision, each (19,).

    One matching serves all alphas. It maximises similarity times how well two identities fit over
    the whole video, where a frame gives a pair its share of what overlaps with either (IJCV 2021,
    Sec. 5, in TrackEval's form).
    """
    both = truth_frames[:, None] + track_frames[None, :]
    fit = np.zeros(both.shape)
    for g, n, similarity in frames:
        share = similarity.sum(axis=0)[None, :] + similarity.sum(axis=1)[:, None] - similarity
        fit[g[:, None], n] += np.divide(
            similarity, share, out=np.zeros_like(similarity), where=share > _EPS
        )
    alignment = ratio(fit, both - fit)
    matched = np.zeros((len(ALPHAS), *both.shape), np.int64)
    true_positives = np.zeros(len(ALPHAS), np.int64)
    summed = np.zeros(len(ALPHAS))
    for g, n, similarity in frames:
        if not similarity.any():
            continue
        i, j = linear_sum_assignment(alignment[g[:, None], n] * similarity, maximize=True)
        values = similarity[i, j]
        right = values >= ALPHAS[:, None] - _EPS
        true_positives += right.sum(axis=1)
        summed += (right * values).sum(axis=1)
        matched[:, g[i], n[j]] += right

    def of_pairs(denominator: NDArray[Any]) -> Floats:
        sums: Floats = (matched * (matched / np.maximum(1, denominator))).sum(axis=(1, 2))
        return sums

    return (
        true_positives,
        summed,
        of_pairs(both - matched),
        of_pairs(truth_frames[:, None]),
        of_pairs(track_frames[None, :]),
    )


def _clear(
    frames: Sequence[Frame], truth_frames: Ints
) -> tuple[int, float, int, int, int, int, int]:
    """CLEAR's matching, frame after frame, as in the fields of TrackingCounts."""
    none = -1
    ever = np.full(len(truth_frames), none)  # the track that last showed an instance
    before = ever.copy()  # the same, of the last frame that had truth and tracks
    times_found = np.zeros_like(truth_frames)
    times_started = np.zeros_like(truth_frames)
    true_positives, summed, switches = 0, 0.0, 0
    for g, n, similarity in frames:
        # A frame without truth or without tracks is no gap: TrackEval leaves the pairs as they are.
        if not len(g) or not len(n):
            continue
        gain = _KEEP * (n[None, :] == before[g][:, None]) + similarity
        gain[similarity < SIMILARITY_THRESHOLD - _EPS] = 0.0
        i, j = linear_sum_assignment(gain, maximize=True)
        valid = gain[i, j] > _EPS
        i, j = i[valid], j[valid]
        instances, tracks = g[i], n[j]
        switches += int(((ever[instances] != none) & (ever[instances] != tracks)).sum())
        ever[instances] = tracks
        times_found[instances] += 1
        now = np.full_like(before, none)
        now[instances] = tracks
        times_started += (before == none) & (now != none)
        before = now
        true_positives += len(i)
        summed += float(similarity[i, j].sum())
    share = times_found[truth_frames > 0] / truth_frames[truth_frames > 0]
    mostly = int((share > 0.8).sum())
    partly = int((share >= 0.2).sum()) - mostly
    again = int((times_started[times_started > 0] - 1).sum())
    return true_positives, summed, switches, again, mostly, partly, len(share) - mostly - partly


def _identity(frames: Sequence[Frame], num_truth: int, num_tracks: int) -> int:
    """Masks matched by the best one-to-one assignment of whole tracks to instances (IDTP)."""
    together = np.zeros((num_truth, num_tracks), np.int64)
    for g, n, similarity in frames:
        together[g[:, None], n] += similarity >= SIMILARITY_THRESHOLD
    # A pair costs its frames less twice those together, either alone costs its frames: so the
    # cheapest assignment is the one with most frames together.
    return int(together[linear_sum_assignment(together, maximize=True)].sum())


# ---- reduce -------------------------------------------------------------------------------------


def summarise_tracking(videos: Iterable[VideoTracking]) -> TrackingMetrics:
    """Reduce the counts of all videos, in any order, to the data set's metrics.

    Errors: ValueError for no video, one video twice, or videos of different data sets.
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
    sums = {category_id: TrackingCounts.none() for category_id in ordered[0].categories}
    for video in ordered:
        for category_id, counts in video.counts.items():
            sums[category_id] += counts
    per_class = {category_id: counts.scores() for category_id, counts in sums.items()}
    return TrackingMetrics(
        per_class=per_class,
        class_averaged=_mean(list(per_class.values())),
        present_averaged=_mean([per_class[c] for c, counts in sums.items() if counts.truth]),
        detection_averaged=sum(sums.values(), TrackingCounts.none()).scores(),
        num_videos=len(ordered),
    )


def _mean(classes: Sequence[TrackingScores]) -> TrackingScores:
    """Mean of every metric over classes, and sum of every count; of no class, as of no truth."""
    rows = list(classes) or [TrackingCounts.none().scores()]
    per_alpha = {name: np.mean([row.per_alpha[name] for row in rows], axis=0) for name in PER_ALPHA}
    values: dict[str, float] = {
        name: sum(row.values[name] for row in rows)
        if name in COUNTS
        else float(np.mean([row.values[name] for row in rows]))
        for name in rows[0].values
    }
    return TrackingScores(values, per_alpha)
