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
import torch
from numpy.typing import NDArray

from idol import results as results_file
from idol import rle
from idol import truth as truth_file
from idol.config import TrackerConfig
from idol.structures import FrameDetections, Track
from idol.truth import Rle, Truth, VideoTruth

_log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# The benchmarks' protocol, not ours to tune: hence constants and no configuration.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""(10,) a detection is found right if its spatio-temporal IoU reaches the threshold."""
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""(101,) recalls at which precision is averaged."""
MAX_DETECTIONS = (1, 10, 100)
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
IDENTITY_IOU = 0.5
"""Mask IoU in one frame from which a detection is taken to show a true instance."""


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
    num_truth: dict[int, NDArray[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """Scores of a whole data set; -1 where there is no truth to score against.

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


@dataclass(frozen=True, slots=True, eq=False)
class FrameOverlap:
    """What scoring needs of one frame instead of its masks: a row of the OVERLAP table.

    frame_index:  position in the video
    intersection: (N, G) pixels that detection and true instance share
    area:         (N,)   pixels of every detection
    truth_area:   (G,)   pixels of every true instance, in the order of VideoTruth
    """

    frame_index: int
    intersection: Floats
    area: Floats
    truth_area: Floats

    def __post_init__(self) -> None:
        want = (len(self.area), len(self.truth_area))
        if self.intersection.shape != want:
            raise ValueError(
                f"intersection of frame {self.frame_index} must have shape (N, G) = {want}, got "
                f"{self.intersection.shape}"
            )


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
    Errors: ValueError naming the first malformed entry by its index. In compat mode IndexError for
    empty results, which score 0 otherwise.
    """
    known = truth_file.read(truth, compat=compat)
    entries = results_file.read(results)
    if compat and not entries:
        raise IndexError("list index out of range: the official evaluator refuses empty results")
    grouped: dict[int, list[int]] = {video_id: [] for video_id in known.videos}
    for index, entry in enumerate(entries):
        results_file.check_ids(entry, index, known.videos, known.categories, compat=compat)
        grouped[entry["video_id"]].append(index)
    return summarise(
        match_video([entries[i] for i in rows], known.videos[video_id], rows, compat=compat)
        for video_id, rows in grouped.items()
    )


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
    Errors: ValueError with the index of the first malformed entry.
    """
    rows = list(range(len(results))) if indices is None else list(indices)
    if len(truth.masks) != len(truth):
        raise ValueError(
            f"the truth of video {truth.video_id} carries no masks; match_video needs them "
            "(match_video_from_overlaps does not)"
        )
    for entry, index in zip(results, rows, strict=True):
        results_file.check_ids(entry, index, (truth.video_id,), truth.categories, compat=compat)
    masks, areas = results_file.check_video(results, rows, truth, compat=compat)
    # IoUs are needed only where truth of the category exists, and of the best 100.
    category_ids = np.array([entry["category_id"] for entry in results], np.int64)
    scores = np.array([entry["score"] for entry in results], np.float64)
    needed = np.zeros(len(results), bool)
    for category_id in np.unique(truth.category_ids):
        of_category = np.flatnonzero(category_ids == category_id)
        needed[of_category[_best_first(scores[of_category])]] = True
    kept = np.flatnonzero(needed)
    iou = np.zeros((len(results), len(truth)))
    iou[kept] = _mask_iou([masks[n] for n in kept], areas[kept], truth)
    return _match(
        truth, category_ids, scores, truth_file.average_area(areas), iou, len(results) > 0, compat
    )


def frame_overlap(masks: Sequence[bytes], truth: VideoTruth, frame_index: int) -> FrameOverlap:
    """Measure one frame's detections against the truth, once, for any number of scorings.

    masks:       N compressed RLE counts of the original size (FrameDetections.masks)
    truth:       of the video, with masks
    frame_index: position in the video
    """
    detected: list[Rle] = [{"size": list(truth.size), "counts": counts} for counts in masks]
    area, wrong = rle.check(detected)
    if wrong is not None:
        raise ValueError(
            f"mask {wrong} of frame {frame_index} of video {truth.video_id} is no readable RLE of "
            f"size {list(truth.size)} (height, width)"
        )
    true_masks = [track[frame_index] for track in truth.masks]
    columns = [g for g, mask in enumerate(true_masks) if mask is not None]
    intersection = np.zeros((len(masks), len(truth)))
    if len(masks) and columns:
        present = [mask for mask in true_masks if mask is not None]
        intersection[:, columns] = _intersections(detected, area, present)
    return FrameOverlap(
        frame_index,
        intersection,
        area.astype(np.float64),
        truth.areas[:, frame_index].astype(np.float64),
    )


def match_video_from_overlaps(
    tracks: Sequence[Track],
    overlaps: Iterable[FrameOverlap],
    truth: VideoTruth,
    *,
    category_ids: Sequence[int],
    config: TrackerConfig,
) -> VideoMatches:
    """Match tracks with truth without opening a mask: the same as match_video on their masks.

    A spatio-temporal IoU is a ratio of sums over frames, so per-frame intersections and areas say
    everything (ARCHITECTURE 4.3). Tracks become entries as in `results.to_ytvis`.

    tracks:       of this video
    overlaps:     one FrameOverlap for every frame of the video
    truth:        of this video; masks are not needed
    category_ids: (K,) the data set's category_id of every label
    config:       multi_class and class_score_threshold
    Errors: ValueError where a frame is missing or the truth has another number of instances.
    """
    frames = {overlap.frame_index: overlap for overlap in overlaps}
    if sorted(frames) != list(range(truth.length)):
        missing = sorted(set(range(truth.length)) - frames.keys())
        raise ValueError(
            f"video {truth.video_id} has {truth.length} frames, overlaps cover {len(frames)}; "
            f"missing: {missing[:5]}. Store the overlaps of every frame, also of empty ones."
        )
    if any(len(frame.truth_area) != len(truth) for frame in frames.values()):
        raise ValueError(
            f"overlaps of video {truth.video_id} were measured against another truth: it has "
            f"{len(truth)} instances. Make the OVERLAP table again from this truth."
        )
    # All frames' rows in one array, so that a track is one index into it.
    ordered = [frames[t] for t in range(truth.length)]
    first = np.cumsum([0] + [len(frame.area) for frame in ordered])
    area = np.concatenate([f.area for f in ordered]).astype(np.float64)
    intersection = np.concatenate([f.intersection for f in ordered]).astype(np.float64)
    truth_total = np.sum([f.truth_area for f in ordered], axis=0, dtype=np.float64)

    shared = np.zeros((len(tracks), len(truth)))
    total = np.zeros(len(tracks))
    average = np.zeros(len(tracks))
    for n, track in enumerate(tracks):
        frame_rows = np.array(sorted(track.detections.items()), np.int64).reshape(-1, 2)
        rows = first[frame_rows[:, 0]] + frame_rows[:, 1]
        if (rows >= first[frame_rows[:, 0] + 1]).any():
            raise ValueError(
                f"track {track.track_id} of video {truth.video_id} names a detection that the "
                "overlaps lack. Are both from the same detections?"
            )
        shared[n] = intersection[rows].sum(axis=0)
        total[n] = area[rows].sum()
        average[n] = truth_file.average_area(area[rows][None])[0]
    iou = _ratio(shared, total[:, None] + truth_total - shared)
    chosen = results_file.submissions(tracks, config)
    of_track = np.array([s.track for s in chosen], np.int64)
    return _match(
        truth,
        np.array([category_ids[s.label] for s in chosen], np.int64),
        np.array([s.score for s in chosen], np.float64),
        average[of_track],
        iou[of_track],
        len(chosen) > 0,
        compat=False,
    )


def true_identity_tracks(
    frames: Sequence[FrameDetections],
    overlaps: Sequence[FrameOverlap],
    *,
    rows: Sequence[Sequence[int]] | None = None,
    keep_unmatched: bool = False,
) -> list[Track]:
    """Tracks as a tracker would make them that knows every true identity (frame oracle, Sec. 4.3).

    In every frame detections go to true instances one to one, best mask IoU first, down to
    IDENTITY_IOU. The gap between this AP and AP is what association loses; what this AP still
    lacks, detection and segmentation lose.

    frames:         FrameDetections of one video; masks and embeddings are not looked at
    overlaps:       FrameOverlap of the same frames, in the same order
    rows:           per frame the detections to use (as `tracker.select` chose); None: all
    keep_unmatched: what becomes of detections that show no instance, or show one that a better
                    detection has. False: dropped, as nothing can be associated with them. True:
                    each a track of its own, so that false positives of the detector stay
    returns:        tracks with track_id = position of the instance in VideoTruth (from G on:
                    unmatched detections), ascending; class scores are the mean over its frames
    """
    detections: dict[int, dict[int, int]] = {}
    scores: dict[int, list[torch.Tensor]] = {}
    unmatched: list[tuple[FrameDetections, int]] = []
    num_truth = 0
    for position, (frame, overlap) in enumerate(zip(frames, overlaps, strict=True)):
        if frame.frame_index != overlap.frame_index or len(frame) != len(overlap.area):
            raise ValueError(
                f"frame {frame.frame_index} has {len(frame)} detections, but the overlap in its "
                f"place is of frame {overlap.frame_index} with {len(overlap.area)}"
            )
        num_truth = len(overlap.truth_area)
        used = np.arange(len(frame)) if rows is None else np.array(rows[position], np.int64)
        iou = _ratio(
            overlap.intersection,
            overlap.area[:, None] + overlap.truth_area - overlap.intersection,
        )[used]
        free = set(range(len(used)))
        while iou.size and iou.max() >= IDENTITY_IOU:
            n, g = np.unravel_index(iou.argmax(), iou.shape)
            iou[n, :] = -1.0
            iou[:, g] = -1.0
            free.remove(int(n))
            detections.setdefault(int(g), {})[frame.frame_index] = int(used[n])
            scores.setdefault(int(g), []).append(frame.class_scores[int(used[n])])
        unmatched += [(frame, int(used[n])) for n in sorted(free)]
    tracks = [
        Track(g, detections[g], torch.stack(scores[g]).mean(dim=0)) for g in sorted(detections)
    ]
    if keep_unmatched:
        tracks += [
            Track(num_truth + k, {frame.frame_index: row}, frame.class_scores[row])
            for k, (frame, row) in enumerate(unmatched)
        ]
    return tracks


def summarise(matches: Iterable[VideoMatches]) -> Metrics:
    """Reduce the matches of all videos, in any order, to the data set's scores.

    Errors: ValueError for no video, one video twice, or videos of different data sets.
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
        for a, limit in enumerate(MAX_DETECTIONS):
            curve, reached = _accumulate(having, category_id, num_truth, limit)
            precision[:, :, k, :, a] = curve
            recall[:, k, :, a] = reached
    missing = tuple(m.video_id for m in videos if not m.has_results)
    if missing:
        _log.warning(
            "%d of %d videos have no results and are scored as empty: %s",
            len(missing),
            len(videos),
            ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else ""),
        )
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


# ---- IoU ----------------------------------------------------------------------------------------


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, 0 where there is nothing to divide by."""
    out = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _intersections(detected: list[Rle], areas: NDArray[Any], truth: list[Rle]) -> Floats:
    """(N, G) shared pixels of N and G masks of one size.

    With every truth called a crowd, pycocotools returns intersection / detection area. Rounding
    gives back the exact count, as both are far below 2^53.
    """
    from pycocotools import mask as coco_mask

    share = coco_mask.iou(detected, truth, [1] * len(truth))
    shared: Floats = np.rint(np.asarray(share) * areas[:, None])
    return shared


def _mask_iou(masks: list[list[Rle | None]], areas: NDArray[np.int64], truth: VideoTruth) -> Floats:
    """(N, G) spatio-temporal IoU of N tracks with the truth.

    Per frame rather than on one picture H x (W*T): its runs would leave 32 bits on long videos,
    and a mask that several entries share (one track under several classes) is opened once.
    """
    shape = (len(masks), len(truth))
    shared = np.zeros(shape)
    if not all(shape):
        return shared
    regular = all(len(track) == truth.length for track in (*masks, *truth.masks)) and all(
        tuple(mask["size"]) == truth.size
        for track in (*masks, *truth.masks)
        for mask in track
        if mask is not None
    )
    if not regular:
        return _irregular_iou(masks, truth)
    for frame in range(truth.length):
        columns = [g for g in range(shape[1]) if truth.masks[g][frame] is not None]
        rows = [n for n in range(shape[0]) if masks[n][frame] is not None]
        if not rows or not columns:
            continue
        unique: dict[bytes, int] = {}
        opened: list[int] = []
        position: list[int] = []
        for n in rows:
            mask = masks[n][frame]
            assert mask is not None
            if mask["counts"] not in unique:
                unique[mask["counts"]] = len(opened)
                opened.append(n)
            position.append(unique[mask["counts"]])
        part = _intersections(
            [m for n in opened if (m := masks[n][frame]) is not None],
            areas[opened, frame],
            [m for g in columns if (m := truth.masks[g][frame]) is not None],
        )
        shared[np.ix_(rows, columns)] += part[position]
    union = areas.sum(axis=1)[:, None] + truth.areas.sum(axis=1) - shared
    return _ratio(shared, union)


def _irregular_iou(masks: list[list[Rle | None]], truth: VideoTruth) -> Floats:
    """The official evaluator's IoU where lengths or sizes disagree (compat mode only).

    Frames are paired up to the shorter list, and two masks of different size are both dropped.
    """
    iou = np.zeros((len(masks), len(truth)))
    for n, track in enumerate(masks):
        for g, true_track in enumerate(truth.masks):
            shared = union = 0.0
            for mask, true_mask in zip(track, true_track, strict=False):
                present = [m for m in (mask, true_mask) if m is not None]
                if len(present) == 2 and list(present[0]["size"]) != list(present[1]["size"]):
                    continue
                areas, _ = rle.check(present)
                both = 0.0
                if len(present) == 2:
                    both = float(_intersections(present[:1], areas[:1], present[1:])[0, 0])
                shared += both
                union += float(areas.sum()) - both
            iou[n, g] = shared / union if union > 0 else 0.0
    return iou


# ---- matching -----------------------------------------------------------------------------------


def _best_first(scores: Floats) -> NDArray[np.int64]:
    """Positions of the best 100 scores, descending; equal scores in the order given."""
    order: NDArray[np.int64] = np.argsort(-scores, kind="stable")[: MAX_DETECTIONS[-1]]
    return order


def _match(
    truth: VideoTruth,
    category_ids: NDArray[np.int64],
    scores: Floats,
    average_areas: Floats,
    iou: Floats,
    has_results: bool,
    compat: bool,
) -> VideoMatches:
    """Match category by category.

    category_ids, scores, average_areas: (N,) of the tracks;  iou: (N, G)
    """
    ranges = (*AREA_RANGES, *(OCCLUSION_RANGES if truth.occlusion is not None else ()))
    # A truth id of 0 reads as "not matched" in the official code.
    countable = (truth.instance_ids != 0) | (not compat)
    out = VideoMatches(truth.video_id, truth.categories, ranges, has_results, {}, {}, {}, {})
    for category_id in truth.categories:
        rows = np.flatnonzero(category_ids == category_id)
        columns = np.flatnonzero(truth.category_ids == category_id)
        if not len(rows) and not len(columns):
            continue
        rows = rows[_best_first(scores[rows])]
        outside = _outside(average_areas[rows], None, ranges)
        occlusion = None if truth.occlusion is None else truth.occlusion[columns]
        ignore = _outside(truth.average_areas[columns], occlusion, ranges) | truth.crowd[columns]
        matched, ignored = _greedy(
            iou[np.ix_(rows, columns)], ignore, truth.crowd[columns], countable[columns]
        )
        if len(columns):
            out.num_truth[category_id] = (~ignore).sum(axis=1)
        if len(rows):
            out.scores[category_id] = scores[rows]
            out.matched[category_id] = matched
            # What was found nowhere and has another size is not this range's false positive.
            out.ignored[category_id] = ignored | (~matched & outside[:, None, :])
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
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    free = np.ones((num_ranges, len(IOU_THRESHOLDS), num_truth), bool)
    s, t = np.ogrid[:num_ranges, : len(IOU_THRESHOLDS)]
    for n in np.flatnonzero((iou >= thresholds[0]).any(axis=1)):
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


# ---- reduction ----------------------------------------------------------------------------------


def _accumulate(
    videos: Sequence[VideoMatches], category_id: int, num_truth: NDArray[np.int64], limit: int
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
            reached = right[s] / num_truth[s]
            recall[:, s] = reached[:, -1]
            for t in range(len(IOU_THRESHOLDS)):
                at = np.searchsorted(reached[t], RECALL_POINTS, side="left")
                inside = at < len(order)
                precision[t, inside, s] = best[s, t, at[inside]]
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
