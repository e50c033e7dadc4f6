"""The truth of a clip in the form its losses take: instances as tubes over all T frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from idol.masks.resize import STRIDE
from idol.structures import Targets, check_shape


@dataclass(frozen=True, slots=True, eq=False)
class ClipTruth:
    """The G instances of a clip of T frames, at a quarter of the padded input's resolution.

    labels: (G,)         int64, 0..K-1
    boxes:  (G, T, 4)    cxcywh in units of the un-padded frame, zeros where absent
    masks:  (G, T, h, w) bool (SeqFormer), or float32 in [0, 1] (IFC); empty where absent
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor

    def __post_init__(self) -> None:
        count = len(self.labels)
        check_shape("labels", self.labels, count)
        check_shape("boxes", self.boxes, count, "T", 4)
        check_shape("masks", self.masks, count, self.boxes.shape[1], "h", "w")


def seqformer_truth(frames: Sequence[Targets], size: tuple[int, int]) -> ClipTruth:
    """As SeqFormer is trained (its specification 3.1): every instance counts, absent frames too.

    One that is in no frame of the clip is of class 0, with empty masks, as released.

    frames: the truth of T frames, rows of the same instances
    size:   (H, W) of the padded input
    """
    labels, boxes, masks, present = _joined(frames, size)
    offset = STRIDE // 2
    seen = present.any(1)
    return ClipTruth(labels * seen, boxes, masks[:, :, offset::STRIDE, offset::STRIDE])


def ifc_truth(frames: Sequence[Targets], size: tuple[int, int]) -> ClipTruth:
    """As IFC is trained (its specification 3.1): soft masks, of instances that are in some frame.

    frames: the truth of T frames, rows of the same instances
    size:   (H, W) of the padded input
    """
    labels, boxes, masks, present = _joined(frames, size)
    seen = present.any(1)
    small = (-(-size[0] // STRIDE), -(-size[1] // STRIDE))
    if not seen.any():
        return ClipTruth(labels[:0], boxes[:0], masks.new_zeros(0, len(frames), *small).float())
    soft = F.interpolate(masks[seen].float(), small, mode="bilinear", align_corners=False)
    return ClipTruth(labels[seen], boxes[seen], soft)


def _joined(
    frames: Sequence[Targets], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """labels (G,), boxes (G, T, 4), masks (G, T, H, W) and present (G, T) of T frames."""
    counts = {len(frame.labels) for frame in frames}
    if len(counts) != 1:
        raise ValueError(
            "all frames of a clip must have rows of the same instances, got frames with "
            f"{sorted(counts)} rows. Mark those that a frame does not show in Targets.present."
        )
    present = torch.stack([frame.present for frame in frames], 1)
    boxes = torch.stack([frame.boxes for frame in frames], 1) * present[..., None]
    masks = present.new_zeros(*present.shape, *size)
    for t, frame in enumerate(frames):
        height, width = frame.masks.shape[1:]
        if height > size[0] or width > size[1]:
            raise ValueError(f"masks of {(height, width)} do not fit into the input's {size}")
        masks[:, t, :height, :width] = frame.masks & frame.present[:, None, None]
    return frames[0].labels, boxes, masks, present
