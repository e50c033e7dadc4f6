"""Which detection shows which true instance in a frame, and how often a track loses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from idol.arrays import Ints
from idol.evaluation.overlaps import FrameOverlap, ratio

if TYPE_CHECKING:  # with torch, which scoring a file does not need
    from idol.structures import Track

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
