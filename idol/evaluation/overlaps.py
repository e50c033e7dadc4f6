"""How the masks of a video's tracks overlap its true instances: pixels that they share, and IoU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from idol.arrays import Bools, Floats
from idol.masks import packed, rle
from idol.ytvis import results as results_file
from idol.ytvis.index import Columns
from idol.ytvis.truth import VideoTruth
from idol.ytvis.videos import Rle


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
    masks, areas = checked_masks(results, truth, indices, compat=False)
    everything = np.ones((len(results), len(truth)), bool)
    found = _packed_overlap(masks, truth, everything, per_frame=True)
    if found is not None:
        intersection = found.astype(np.float64)
    else:
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


def overlap_of_columns(
    entries: Columns, truth: VideoTruth, wanted: Bools | None
) -> TrackOverlaps | None:
    """Measure one video's entries against its truth with compiled code alone.

    entries: N entries of this video
    truth:   of this video, with masks
    wanted:  (N, G) pairs to be measured, summed over the frames. None: all pairs in every frame
    returns: as `track_overlaps`, with one frame of intersections where they are summed. None
             without compiled code, and where something is wrong, which `checked_masks` tells
    """
    kernel = rle.kernel()
    true_masks = packed.pack(truth.masks, truth.size, truth.length)
    if kernel is None or true_masks is None or len(truth.masks) != len(truth):
        return None
    everything = np.ones((len(entries.scores), len(truth)), bool)
    found = kernel.overlap(
        entries.masks,
        true_masks,
        everything if wanted is None else wanted,
        truth.size[0] * truth.size[1],
        per_frame=wanted is None,
    )
    if found is None:
        return None
    intersection, area = found
    return TrackOverlaps(
        intersection.astype(np.float64),
        area,
        truth.areas,
        entries.masks.lengths >= 0,
        true_masks.lengths >= 0,
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
        intersection[:, columns] = intersections(detected, area, present)
    return FrameOverlap(
        frame_index,
        intersection,
        area.astype(np.float64),
        truth.areas[:, frame_index].astype(np.float64),
    )


def checked_masks(
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


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, 0 where there is nothing to divide by."""
    out = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def intersections(detected: list[Rle], areas: NDArray[Any], truth: list[Rle]) -> Floats:
    """(N, G) shared pixels of N masks, whose areas are known, and G masks of one size."""
    if (kernel := rle.kernel()) and detected and truth:
        height, width = size = truth[0]["size"]
        one = packed.pack([[mask] for mask in detected], size, 1)
        other = packed.pack([[mask] for mask in truth], size, 1)
        if one is not None and other is not None:
            everything = np.ones((len(detected), len(truth)), np.bool_)
            found = kernel.overlap(one, other, everything, height * width, per_frame=False)
            if found is not None:
                shared: Floats = found[0][0].astype(np.float64)
                return shared
    from pycocotools import mask as coco_mask

    # With every truth called a crowd, pycocotools returns intersection / detection area. Rounding
    # gives back the exact count, as both are far below 2^53.
    share = coco_mask.iou(detected, truth, [1] * len(truth))
    shared = np.rint(np.asarray(share) * areas[:, None])
    return shared


def mask_iou(
    masks: list[list[Rle | None]], areas: NDArray[np.int64], truth: VideoTruth, wanted: Bools
) -> Floats:
    """(N, G) spatio-temporal IoU of N tracks with the truth, where wanted (N, G).

    Per frame rather than on one picture H x (W*T): its runs would leave 32 bits on long videos.
    """
    shared = np.zeros(wanted.shape)
    kept = np.flatnonzero(wanted.any(axis=1))
    if not len(kept):
        return shared
    tracks = [masks[n] for n in kept]
    regular = all(len(track) == truth.length for track in (*tracks, *truth.masks)) and all(
        tuple(mask["size"]) == truth.size
        for track in (*tracks, *truth.masks)
        for mask in track
        if mask is not None
    )
    if not regular:
        shared[kept] = _irregular_iou(tracks, truth)
        return shared
    found = _packed_overlap(tracks, truth, wanted[kept], per_frame=False)
    if found is not None:
        shared[kept] = found[0]
    else:
        for _, rows, columns, part in _frame_intersections(tracks, areas[kept], truth):
            shared[kept[rows][:, None], columns] += part
    return track_iou(shared, areas, truth)


def _packed_overlap(
    masks: Sequence[Sequence[Rle | None]], truth: VideoTruth, wanted: Bools, *, per_frame: bool
) -> NDArray[np.int64] | None:
    """(T, N, G) shared pixels, or (1, N, G) summed, by compiled code if it is there."""
    characters = sum(len(m["counts"]) for track in masks for m in track if m is not None)
    if (kernel := rle.kernel(characters)) is None:
        return None
    found = packed.pack(masks, truth.size, truth.length)
    true_masks = packed.pack(truth.masks, truth.size, truth.length)
    if found is None or true_masks is None:
        return None
    pixels = truth.size[0] * truth.size[1]
    measured = kernel.overlap(found, true_masks, wanted, pixels, per_frame=per_frame)
    return None if measured is None else measured[0]


def track_iou(shared: Floats, areas: NDArray[np.int64], truth: VideoTruth) -> Floats:
    """Spatio-temporal IoU of N tracks with the truth.

    shared:  (N, G) pixels shared, summed over the frames
    areas:   (N, T) pixels of every mask
    returns: (N, G)
    """
    return ratio(shared, areas.sum(axis=1)[:, None] + truth.areas.sum(axis=1) - shared)


def _frame_intersections(
    masks: list[list[Rle | None]], areas: NDArray[np.int64], truth: VideoTruth
) -> Iterator[tuple[int, list[int], list[int], Floats]]:
    """Per frame with masks on both sides: frame, rows, columns, and their (r, c) shared pixels.

    A mask that several entries share (one track under several classes) is opened once.
    """
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
