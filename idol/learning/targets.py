"""The truths of many frames in rows of one length: what a batched criterion computes with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idol.arrays import Bools, Ints
from idol.structures import Targets

MASK_STRIDE = 4
"""Masks are predicted, and compared, at this stride of the padded input."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What decides about rows, on the host: one entry of (G_b,) per frame.

    present:    bool, the instance is visible in the frame
    identities: int64, its number in the training set, -1 where not known
    """

    present: list[Bools]
    identities: list[Ints]


def read_flags(targets: Sequence[Targets]) -> Flags:
    """Bring the flags of any number of frames to the host, in one copy for all."""
    if not targets:
        return Flags([], [])
    facts = torch.cat([torch.stack([t.present.long(), t.identities]) for t in targets], 1)
    present, identities = facts.cpu().numpy()
    ends = np.cumsum([len(t.labels) for t in targets])[:-1]
    return Flags(np.split(present > 0, ends), np.split(identities, ends))


@dataclass(frozen=True, slots=True)
class PaddedTargets:
    """The truths of B frames in padded rows, and their masks at the network's resolution.

    labels: (B, G) int64 · boxes: (B, G, 4) · valid: (B, G) bool, on the device and, as `real`,
            on the host: rows that are truths
    masks:  (B * G, H/4, W/4) bool, rows of image b from b * G on; (0, 0, 0) where not asked for
    full:   the B frames' masks as they came, (G_b, h, w) each
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    real: Bools
    masks: Tensor
    full: list[Tensor]


def pad(
    targets: Sequence[Targets], counts: Sequence[Bools], padding: Tensor | None
) -> PaddedTargets:
    """Put the truths of B frames in rows of one length.

    counts:  B times (G_b,) bool, the truths that count
    padding: (B, H, W) of the network's input: gives masks their size; None: no masks
    """
    most = max((len(t.labels) for t in targets), default=0)
    device = targets[0].labels.device if targets else torch.device("cpu")
    real = np.zeros((len(targets), most), bool)
    for b, mine in enumerate(counts):
        real[b, : len(mine)] = mine
    labels = torch.zeros(len(targets), most, dtype=torch.int64, device=device)
    boxes = torch.zeros(len(targets), most, 4, device=device)
    masks = torch.zeros(0, 0, 0, dtype=torch.bool, device=device)
    if padding is not None:
        height, width = (side // MASK_STRIDE for side in padding.shape[1:])
        masks = torch.zeros(len(targets) * most, height, width, dtype=torch.bool, device=device)
    offset = MASK_STRIDE // 2
    for b, target in enumerate(targets):
        rows = len(target.labels)
        labels[b, :rows], boxes[b, :rows] = target.labels, target.boxes
        if padding is not None and rows:
            small = target.masks[:, offset::MASK_STRIDE, offset::MASK_STRIDE]
            masks[b * most : b * most + rows, : small.shape[1], : small.shape[2]] = small
    valid = to_device(real, device)
    return PaddedTargets(
        labels=labels * valid,  # absent rows may carry any label: they must not index past K
        boxes=boxes,
        valid=valid,
        real=real,
        masks=masks,
        full=[t.masks for t in targets],
    )


def to_device(array: Bools | Ints, device: torch.device) -> Tensor:
    """A host array on the device, without waiting for what the device still has to do."""
    return torch.from_numpy(array).to(device, non_blocking=True)
