"""How the masks of a video's tracks overlap its true instances: pixels that they share, and IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idol.arrays import Bools, Floats, Ints
from idol.masks import rle
from idol.ytvis import results as results_file
from idol.ytvis.truth import VideoTruth
from idol.ytvis.videos import Rle


@dataclass(frozen=True, slots=True, eq=False)
class FrameOverlap:
    """What scoring needs of one frame instead of its masks: a row of the OVERLAP table.

    frame_index:  position in the video
    intersection: (N, G) pixels that detection and true instance share; whole numbers, float64 as
                  `frame_overlap` measures them, float32 from the table
    area:         (N,)   pixels of every detection
    truth_area:   (G,)   pixels of every true instance, in the order of VideoTruth; 0 where absent
    """

    frame_index: int
    intersection: NDArray[Any]
    area: NDArray[Any]
    truth_area: NDArray[Any]

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
    area: Ints
    truth_area: Ints
    present: Bools
    truth_present: Bools


def track_overlaps(
    results: Sequence[Mapping[str, Any]],
    truth: VideoTruth,
    indices: Sequence[int] | None = None,
) -> TrackOverlaps:
    """Measure one video's result entries against its truth, frame by frame.

    results, truth, indices: as in `match_video`
    Raises: ValueError: names the index of the first malformed entry.
    """
    masks = checked_masks(results, truth, indices, compat=False)
    everything = np.ones((len(results), len(truth)), bool)
    areas, intersection = _measured(masks, truth, everything, indices, per_frame=True)
    shape = (-1, truth.length)
    return TrackOverlaps(
        intersection,
        areas,
        truth.areas,
        np.array([[m is not None for m in track] for track in masks], bool).reshape(shape),
        np.array([[m is not None for m in track] for track in truth.masks], bool).reshape(shape),
    )


def frame_overlap(
    masks: Sequence[bytes],
    truth: Sequence[bytes | None],
    size: tuple[int, int],
    frame_index: int,
) -> FrameOverlap:
    """Measure one frame's detections against the truth, once, for any number of scorings.

    masks:       N compressed RLE counts of this size (FrameDetections.masks)
    truth:       of this frame, G compressed RLE counts or None (`truth_of_frame`)
    size:        (height, width) of the original frame
    frame_index: position in the video
    Raises: ValueError: a mask is no readable RLE of this size.
    """
    detected, present = (
        [{"size": list(size), "counts": counts} for counts in side if counts is not None]
        for side in (masks, truth)
    )
    columns = [g for g, counts in enumerate(truth) if counts is not None]
    (area, wrong), (true_area, wrong_truth) = rle.check(detected), rle.check(present)
    if wrong is not None or wrong_truth is not None:
        what = f"mask {wrong}" if wrong is not None else f"true mask {columns[wrong_truth or 0]}"
        raise ValueError(
            f"{what} of frame {frame_index} is no readable RLE of size {list(size)} (height, width)"
        )
    truth_area = np.zeros(len(truth))
    truth_area[columns] = true_area
    intersection = np.zeros((len(masks), len(truth)))
    if detected and present:
        intersection[:, columns] = intersections(detected, area, present)
    return FrameOverlap(frame_index, intersection, area.astype(np.float64), truth_area)


def truth_of_frame(truth: VideoTruth, frame: int) -> list[bytes | None]:
    """The true masks of one frame as compressed RLE counts, None where absent."""
    masks = (track[frame] for track in truth.masks)
    return [None if mask is None else mask["counts"] for mask in masks]


def checked_masks(
    results: Sequence[Mapping[str, Any]],
    truth: VideoTruth,
    indices: Sequence[int] | None,
    *,
    compat: bool,
) -> list[list[Rle | None]]:
    """The masks of every entry and frame, whose runs are not read yet; see `match_video`."""
    rows = list(range(len(results))) if indices is None else list(indices)
    if len(truth.masks) != len(truth):
        raise ValueError(
            f"the truth of video {truth.video_id} carries no masks; matching masks needs them "
            "(match_video_from_overlaps does not)"
        )
    for entry, index in zip(results, rows, strict=True):
        results_file.check_ids(entry, index, (truth.video_id,), truth.categories, compat=compat)
    return results_file.masks_of_video(results, rows, truth, compat=compat)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, 0 where there is nothing to divide by."""
    out = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def intersections(detected: list[Rle], areas: NDArray[Any], truth: list[Rle]) -> Floats:
    """(N, G) shared pixels of N masks, whose areas are known, and G masks of one size."""
    if compiled := rle.kernel():
        one, other = ([[mask["counts"]] for mask in side] for side in (detected, truth))
        everything = np.ones((len(detected), len(truth)), np.bool_)
        pixels = truth[0]["size"][0] * truth[0]["size"][1]
        _, shared = compiled.overlap(one, other, everything, pixels, 1, per_frame=False)
        return np.asarray(shared[0], np.float64)
    from pycocotools import mask as coco_mask

    # With every truth called a crowd, pycocotools returns intersection / detection area. Rounding
    # gives back the exact count, as both are far below 2^53.
    share = coco_mask.iou(detected, truth, [1] * len(truth))
    return np.asarray(np.rint(np.asarray(share) * areas[:, None]))


def spatio_temporal_iou(
    masks: list[list[Rle | None]],
    truth: VideoTruth,
    wanted: Bools,
    indices: Sequence[int] | None,
    *,
    compat: bool,
) -> tuple[Ints, Floats]:
    """Areas of N tracks, and their spatio-temporal IoU with the truth where wanted (N, G).

    Per frame rather than on one picture H x (W*T): its runs would leave 32 bits on long videos.

    returns: (N, T) pixels, in compat mode with room for the longest track; (N, G)
    Raises: ValueError: names the index of the first entry with a mask that cannot be read.
    """
    tracks = (*masks, *truth.masks) if compat else truth.masks
    regular = all(len(track) == truth.length for track in tracks) and all(
        tuple(mask["size"]) == truth.size for track in tracks for mask in track if mask is not None
    )
    if not regular:
        areas, wrong = rle.check_tracks(masks, max([truth.length, *map(len, masks)]))
        if wrong is not None:
            raise results_file.unreadable(masks, indices, *wrong)
        return areas, _irregular_iou(masks, truth) if wanted.any() else np.zeros(wanted.shape)
    areas, [shared] = _measured(masks, truth, wanted, indices, per_frame=False)
    return areas, ratio(shared, areas.sum(axis=1)[:, None] + truth.areas.sum(axis=1) - shared)


def _measured(
    masks: Sequence[Sequence[Rle | None]],
    truth: VideoTruth,
    wanted: Bools,
    indices: Sequence[int] | None,
    *,
    per_frame: bool,
) -> tuple[Ints, Floats]:
    """(N, T) areas of N tracks; (T, N, G) pixels shared with the truth, at least where wanted.

    per_frame: False: summed over the frames, (1, N, G)
    Raises: ValueError: as of `spatio_temporal_iou`.
    """
    # One track is often written under many classes; its masks are read once.
    places: dict[tuple[bytes | None, ...], int] = {}
    counts = [_counts(track) for track in masks]
    place = np.array([places.setdefault(track, len(places)) for track in counts], np.int64)
    tracks, length = list(places), truth.length
    needed = np.zeros((len(tracks), len(truth)), np.bool_)
    np.logical_or.at(needed, place, wanted)
    if compiled := rle.kernel(sum(map(len, tracks))):
        pixels, true = truth.size[0] * truth.size[1], list(map(_counts, truth.masks))
        areas, shared = compiled.overlap(tracks, true, needed, pixels, length, per_frame=per_frame)
        wrong = np.argwhere(areas[place] < 0)
        if len(wrong):
            raise results_file.unreadable(masks, indices, *wrong[0].tolist())
        return areas[place], np.asarray(shared[:, place], np.float64)
    areas, unreadable = rle.check_tracks(masks, length)
    if unreadable is not None:
        raise results_file.unreadable(masks, indices, *unreadable)
    first = np.unique(place, return_index=True)[1]
    shared = np.zeros((length if per_frame else 1, *needed.shape))
    for t in range(length):
        rows = [n for n, track in enumerate(tracks) if track[t] is not None and needed[n].any()]
        columns = [g for g, track in enumerate(truth.masks) if track[t] is not None]
        if rows and columns:
            shared[t if per_frame else 0, np.array(rows)[:, None], columns] += intersections(
                [mask for n in first[rows] if (mask := masks[n][t]) is not None],
                areas[first[rows], t],
                [mask for g in columns if (mask := truth.masks[g][t]) is not None],
            )
    return areas, shared[:, place]


def _counts(track: Sequence[Rle | None]) -> tuple[bytes | None, ...]:
    return tuple([None if mask is None else mask["counts"] for mask in track])


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
