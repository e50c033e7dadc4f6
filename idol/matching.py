"""Which tracks of a video found which true instances: spatio-temporal IoU and greedy matching.

The rules are those of `ytvoseval` and `oviseval` (youtubevos/cocoapi, qjy981010/cocoapi).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from idol import results as results_file
from idol import rle
from idol import truth as truth_file
from idol.config import TrackerConfig
from idol.structures import Track
from idol.truth import Rle, VideoTruth

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# The benchmarks' protocol, not ours to tune: hence constants and no configuration.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""(10,) a detection is found right if its spatio-temporal IoU reaches the threshold."""
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


class Overlap(Protocol):
    """What scoring needs of one frame instead of its masks: a row of the OVERLAP table.

    frame_index:  position in the video
    intersection: (N, G) pixels that detection and true instance share
    area:         (N,)   pixels of every detection
    truth_area:   (G,)   pixels of every true instance, in the order of VideoTruth
    """

    @property
    def frame_index(self) -> int: ...
    @property
    def intersection(self) -> NDArray[Any]: ...
    @property
    def area(self) -> NDArray[Any]: ...
    @property
    def truth_area(self) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True, eq=False)
class FrameOverlap:
    """An Overlap in exact numbers, as `frame_overlap` measures it."""

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


@dataclass(frozen=True, slots=True, eq=False)
class TrackOverlaps:
    """How the N tracks and the G true instances of a video overlap in each of its T frames.

    intersection:  (T, N, G) shared pixels
    area:          (N, T)    pixels of every track
    truth_area:    (G, T)    pixels of every true instance
    present:       (N, T)    bool, whether there is a mask at all; it may be empty
    truth_present: (G, T)    bool
    """

    intersection: Floats
    area: NDArray[np.int64]
    truth_area: NDArray[np.int64]
    present: Bools
    truth_present: Bools


def track_overlaps(
    results: Sequence[Mapping[str, Any]],
    truth: VideoTruth,
    indices: Sequence[int] | None = None,
) -> TrackOverlaps:
    """Measure one video's result entries against its truth, frame by frame.

    results, truth, indices: as in `match_video`
    Errors: ValueError with the index of the first malformed entry.
    """
    masks, areas = _checked(results, truth, indices, compat=False)
    intersection = np.zeros((truth.length, len(results), len(truth)))
    for frame, rows, columns, part in _frame_intersections(masks, areas, truth):
        intersection[frame, np.array(rows)[:, None], columns] = part
    shape = (-1, truth.length)
    return TrackOverlaps(
        intersection,
        areas,
        truth.areas,
        np.array([[m is not None for m in track] for track in masks], bool).reshape(shape),
        np.array([[m is not None for m in track] for track in truth.masks], bool).reshape(shape),
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
    masks, areas = _checked(results, truth, indices, compat=compat)
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


def _checked(
    results: Sequence[Mapping[str, Any]],
    truth: VideoTruth,
    indices: Sequence[int] | None,
    *,
    compat: bool,
) -> tuple[list[list[Rle | None]], NDArray[np.int64]]:
    """The masks of every entry and frame, and their areas (N, T); see `match_video`."""
    rows = list(range(len(results))) if indices is None else list(indices)
    if len(truth.masks) != len(truth):
        raise ValueError(
            f"the truth of video {truth.video_id} carries no masks; matching masks needs them "
            "(match_video_from_overlaps does not)"
        )
    for entry, index in zip(results, rows, strict=True):
        results_file.check_ids(entry, index, (truth.video_id,), truth.categories, compat=compat)
    return results_file.check_video(results, rows, truth, compat=compat)


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
        intersection[:, columns] = intersections(detected, area, present)
    return FrameOverlap(
        frame_index,
        intersection,
        area.astype(np.float64),
        truth.areas[:, frame_index].astype(np.float64),
    )


def match_video_from_overlaps(
    tracks: Sequence[Track],
    overlaps: Iterable[Overlap],
    truth: VideoTruth,
    *,
    category_ids: Sequence[int],
    config: TrackerConfig,
) -> VideoMatches:
    """Match tracks with truth without opening a mask: the same as match_video on their masks.

    A spatio-temporal IoU is a ratio of sums over frames, so per-frame intersections and areas say
    everything (ARCHITECTURE 4.3). Tracks become entries as in `results.to_ytvis`.

    tracks:       of this video
    overlaps:     one for every frame of the video, in any order
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
    truth_areas = np.stack([f.truth_area for f in ordered], axis=1).astype(np.float64)
    # The table's 32-bit floats are exact up to 2^24 pixels of one instance in one frame.
    if not np.allclose(truth_areas, truth.areas, rtol=1e-6, atol=0.0):
        raise ValueError(
            f"overlaps of video {truth.video_id} were measured against other masks or another "
            "order of instances. Make the OVERLAP table again from this truth."
        )

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
    iou = ratio(shared, total[:, None] + truth_areas.sum(axis=1) - shared)
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


# ---- IoU ----------------------------------------------------------------------------------------


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, 0 where there is nothing to divide by."""
    out = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def intersections(detected: list[Rle], areas: NDArray[Any], truth: list[Rle]) -> Floats:
    """(N, G) shared pixels of N masks, whose areas are known, and G masks of one size.

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
    for _, rows, columns, part in _frame_intersections(masks, areas, truth):
        shared[np.ix_(rows, columns)] += part
    union = areas.sum(axis=1)[:, None] + truth.areas.sum(axis=1) - shared
    return ratio(shared, union)


def _frame_intersections(
    masks: list[list[Rle | None]], areas: NDArray[np.int64], truth: VideoTruth
) -> Iterator[tuple[int, list[int], list[int], Floats]]:
    """Per frame with masks on both sides: frame, rows, columns, and their (r, c) shared pixels."""
    for frame in range(truth.length):
        columns = [g for g in range(len(truth)) if truth.masks[g][frame] is not None]
        rows = [n for n in range(len(masks)) if masks[n][frame] is not None]
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
        part = intersections(
            [m for n in opened if (m := masks[n][frame]) is not None],
            areas[opened, frame],
            [m for g in columns if (m := truth.masks[g][frame]) is not None],
        )
        yield frame, rows, columns, part[position]


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
                    both = float(intersections(present[:1], areas[:1], present[1:])[0, 0])
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
