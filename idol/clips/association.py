"""Identities of clips' detections, from how they overlap: the clip matching of IFC (5.1 - 5.3).

Without PyTorch: an overlap is what the caller says it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import scipy

from idol.arrays import Floats, Ints

EPSILON = 1e-6
"""Added to denominators, as released."""

T = TypeVar("T")
Overlap = Callable[[T, T, Sequence[int]], Floats]
"""Detections of an earlier clip (n), of this clip (N), frames of both → (n, N) soft mask IoU."""


@dataclass(frozen=True, slots=True, eq=False)
class _Clip(Generic[T]):
    number: int
    frames: Sequence[int]
    identities: Ints
    detections: T


class ClipAssociation(Generic[T]):
    """Joins the detections of overlapping clips of one video, given in order of their first frames.

    It keeps the clips that a later one can share a frame with, and nothing of others.

    overlap:   how detections of two clips overlap over the frames that both have
    threshold: a detection continues an instance only above this
    """

    def __init__(self, overlap: Overlap[T], threshold: float) -> None:
        self.overlap = overlap
        self.threshold = threshold
        self.instances = 0
        """Identities given so far: 0 .. instances - 1."""
        self._number = 0
        self._clips: list[_Clip[T]] = []

    def update(self, frames: Sequence[int], count: int, detections: T) -> Ints:
        """(N,) the identity of each of the `count` detections of the next clip.

        An instance and a detection score the mean, over the last len(frames) clips in which the
        instance was detected and which share a frame with this one, of their soft mask IoU over the
        shared frames. An assignment of the greatest sum decides, pairs at or below the threshold
        excepted; every other detection is a new instance, in order. Classes take no part.

        frames: of the clip in the video, ascending
        Raises: ValueError: frames do not ascend, or start before the clip given last.
        """
        frames = list(frames)
        if not frames or any(b <= a for a, b in pairwise(frames)):
            raise ValueError(f"a clip has frames in ascending order, got {frames[:8]}")
        if self._clips and frames[0] < self._clips[-1].frames[0]:
            raise ValueError(
                f"clips come in order of their first frames, got one that starts at {frames[0]} "
                f"after one that starts at {self._clips[-1].frames[0]}"
            )
        known, scores = self.scores(frames, count, detections)
        scores = np.where(scores > self.threshold, scores, 0.0)
        identities = np.full(count, -1, np.int64)
        rows, columns = scipy.optimize.linear_sum_assignment(scores, maximize=True)
        matched = scores[rows, columns] > 0
        identities[columns[matched]] = known[rows[matched]]
        new = identities < 0
        identities[new] = self.instances + np.arange(np.count_nonzero(new))
        self.instances += int(np.count_nonzero(new))
        self._clips = [clip for clip in self._clips if clip.frames[-1] >= frames[0]]
        self._clips.append(_Clip(self._number, frames, identities, detections))
        self._number += 1
        return identities

    def scores(self, frames: Sequence[int], count: int, detections: T) -> tuple[Ints, Floats]:
        """Instances (m,) that share frames with this clip, and their scores (m, N) with its
        detections; arguments as of update."""
        here = set(frames)
        window = [
            (clip, shared)
            for clip in self._clips
            if clip.number >= self._number - len(frames)
            and (shared := [t for t in clip.frames if t in here])
        ]
        known = np.unique(np.concatenate([[], *(c.identities for c, _ in window)])).astype(np.int64)
        sums, clips = np.zeros((len(known), count)), np.zeros((len(known), 1))
        for clip, shared in window:
            rows = np.searchsorted(known, clip.identities)
            sums[rows] += self.overlap(clip.detections, detections, shared)
            clips[rows] += 1
        return known, sums / (clips + EPSILON)
