"""Clips of mask logits become instances of a video (IFC specification 5, SeqFormer's 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idol.arrays import Floats
from idol.clips.association import EPSILON, ClipAssociation
from idol.structures import check_shape


@dataclass(frozen=True, slots=True, eq=False)
class ClipDetections:
    """The N detections of a clip of T frames; of one video all have the same h and w.

    frames:       T frame numbers in the video, ascending
    class_scores: (N, K) of any kind, averaged over the clips
    masks:        (N, T, h, w) logits. Of binary masks: 1 and -1, or for matching ±∞
    """

    frames: Sequence[int]
    class_scores: Tensor
    masks: Tensor

    def __post_init__(self) -> None:
        check_shape("class_scores", self.class_scores, "N", "K")
        check_shape("masks", self.masks, len(self.class_scores), len(self.frames), "h", "w")

    def __len__(self) -> int:
        return len(self.class_scores)


@dataclass(frozen=True, slots=True, eq=False)
class JoinedFrame:
    """A frame that no later clip can change.

    index:      in the video
    identities: (m,) int64 instances that clips detected in it, ascending
    masks:      (m, h, w) float32, the mean of their logits over those clips
    """

    index: int
    identities: Tensor
    masks: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Soft:
    """Mask probabilities (N, T, h, w) of a clip's frames."""

    frames: Sequence[int]
    masks: Tensor


def soft_iou(earlier: _Soft, later: _Soft, shared: Sequence[int]) -> Floats:
    """(n, N) Σ a b / (Σ (a + b - a b) + 1e-6) over the pixels of the shared frames."""
    a, b = (
        clip.masks[:, [list(clip.frames).index(t) for t in shared]].flatten(1)
        for clip in (earlier, later)
    )
    # Sums of up to millions of pixels: float32 would lose what decides near the threshold.
    a, b = a.double(), b.double()
    inter = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1) - inter
    found: Floats = (inter / (union + EPSILON)).cpu().numpy()
    return found


class ClipMatcher:
    """Joins the clips of one video, in order of their first frames, in bounded memory.

    What it keeps: probabilities of clips that a later one can share a frame with, sums of logits of
    the frames that a later clip can cover, and one class vector per instance.

    threshold: soft mask IoU above which a detection continues an instance; IFC 0.05, SeqFormer 0.01
    """

    def __init__(self, threshold: float) -> None:
        self.association: ClipAssociation[_Soft] = ClipAssociation(soft_iou, threshold)
        self._classes: list[Tensor] = []
        self._clips: list[int] = []
        self._sums: dict[int, dict[int, tuple[Tensor, int]]] = {}

    def update(self, found: ClipDetections) -> Tensor:
        """Take the next clip: (N,) int64 the identity of each detection, from 0.

        Raises: ValueError: as ClipAssociation.update.
        """
        soft = _Soft(found.frames, found.masks.float().sigmoid())
        ids = self.association.update(found.frames, len(found), soft).tolist()
        for identity, scores in zip(ids, found.class_scores.float().cpu(), strict=True):
            if identity == len(self._classes):
                self._classes.append(torch.zeros_like(scores))
                self._clips.append(0)
            self._classes[identity] = self._classes[identity] + scores
            self._clips[identity] += 1
        for at, frame in enumerate(found.frames):
            sums = self._sums.setdefault(frame, {})
            for row, identity in enumerate(ids):
                logits, clips = found.masks[row, at].float(), 0
                if identity in sums:
                    logits, clips = sums[identity][0] + logits, sums[identity][1]
                sums[identity] = (logits, clips + 1)
        return torch.tensor(ids, dtype=torch.int64)

    def finished(self, before: int | None = None) -> Iterator[JoinedFrame]:
        """Frames below `before` (None: all), ascending, which are then forgotten.

        Once a clip is taken no later one covers the frames before its first.
        """
        for index in sorted(self._sums):
            if before is not None and index >= before:
                break
            rows = sorted(self._sums[index].items())
            del self._sums[index]
            if rows:
                masks = torch.stack([logits / clips for _, (logits, clips) in rows])
                yield JoinedFrame(index, torch.tensor([identity for identity, _ in rows]), masks)

    def class_scores(self) -> Tensor:
        """(n, K) the mean class vector of every instance over the clips that detected it."""
        if not self._classes:
            return torch.zeros(0, 0)
        return torch.stack(self._classes) / torch.from_numpy(np.array(self._clips))[:, None]
