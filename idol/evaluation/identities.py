"""Which detection shows which true instance in a frame; the oracle tracker that knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from idol.arrays import Ints
from idol.evaluation.overlaps import FrameOverlap, ratio

if TYPE_CHECKING:  # with torch, which scoring a file does not need
    from torch import Tensor

    from idol.structures import FrameDetections, Track

IDENTITY_IOU = 0.5
"""Mask IoU in one frame from which a detection is taken to show a true instance."""


def shown_instances(overlap: FrameOverlap, rows: Sequence[int] | Ints) -> list[tuple[int, int]]:
    """Which detections of a frame show which true instance: one to one, down to IDENTITY_IOU.

    rows:    the detections to use
    returns: (position in rows, position of the instance), the best mask IoU first
    """
    shared = np.asarray(overlap.intersection[rows], np.float64)
    iou = ratio(shared, overlap.area[rows][:, None] + overlap.truth_area - shared)
    found = []
    while iou.size and iou.max() >= IDENTITY_IOU:
        n, g = (int(i) for i in np.unravel_index(iou.argmax(), iou.shape))
        iou[n, :] = iou[:, g] = -1.0
        found.append((n, g))
    return found


def identity_switches(tracks: Sequence[Track], overlaps: Sequence[FrameOverlap]) -> int:
    """How often a true instance is shown by another track than the last that showed it.

    A track shows an instance in a frame if their masks there are paired by `shown_instances`.
    """
    of_frame: dict[int, list[tuple[int, int]]] = {}  # frame_index -> (track_id, row)
    for found in tracks:
        for frame_index, row in found.detections.items():
            of_frame.setdefault(frame_index, []).append((found.track_id, row))
    shown_by: dict[int, int] = {}
    switches = 0
    for overlap in overlaps:
        here = of_frame.get(overlap.frame_index, [])
        for n, g in shown_instances(overlap, [row for _, row in here]):
            track_id = here[n][0]
            switches += shown_by.get(g, track_id) != track_id
            shown_by[g] = track_id
    return switches


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
    overlaps:       overlaps of the same frames, in the same order
    rows:           per frame the detections to use (as `tracker.select` chose); None: all
    keep_unmatched: what becomes of detections that show no instance, or show one that a better
                    detection has. False: dropped, as nothing can be associated with them. True:
                    each a track of its own, so that false positives of the detector stay
    returns:        tracks with track_id = position of the instance in VideoTruth (from G on:
                    unmatched detections), ascending; class scores are the mean over its frames
    """
    import torch

    from idol.structures import Track

    detections: dict[int, dict[int, int]] = {}
    scores: dict[int, list[Tensor]] = {}
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
        free = set(range(len(used)))
        for n, g in shown_instances(overlap, used):
            free.remove(n)
            detections.setdefault(g, {})[frame.frame_index] = int(used[n])
            scores.setdefault(g, []).append(frame.class_scores[int(used[n])])
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
