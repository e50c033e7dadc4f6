"""The truths of many frames in rows of equal length: the form a batched criterion computes with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idol.arrays import Bools, Ints
from idol.learning.assignment import Truths
from idol.masks.resize import STRIDE
from idol.structures import Targets


@dataclass(frozen=True, slots=True)
class Flags:
    """Facts that decide about rows, on the host: one array (G_b,) per frame.

    present:    bool, whether the instance is visible in the frame
    identities: int64, its number in the training set; -1: not known
    """

    present: list[Bools]
    identities: list[Ints]


def read_flags(targets: Sequence[Targets]) -> Flags:
    """Copy the flags of any number of frames to the host, in one transfer."""
    if not targets:
        return Flags([], [])
    facts = torch.cat([torch.stack([t.present.long(), t.identities]) for t in targets], 1)
    present, identities = facts.cpu().numpy()
    ends = np.cumsum([len(t.labels) for t in targets])[:-1]
    return Flags(np.split(present > 0, ends), np.split(identities, ends))


@dataclass(frozen=True, slots=True)
class PaddedTruths(Truths):
    """The truths of B frames, (B, G) rows on the device, with masks at the network's resolution.

    masks:   (B * G, H/4, W/4) bool, those of image b from row b * G on; (0, 0, 0) without padding
    full:    the B frames' masks as given, (G_b, h, w) each
    padding: (B, H, W) bool of the network's input, True where padded; None: no masks wanted
    """

    masks: Tensor
    full: list[Tensor]
    padding: Tensor | None


def pad(
    targets: Sequence[Targets], counts: Sequence[Bools], padding: Tensor | None
) -> PaddedTruths:
    """Put the truths of B frames in rows of equal length.

    counts:  B times (G_b,) bool, the truths that are valid
    padding: (B, H, W) of the network's input: gives masks their size; None: no masks
    """
    most = max((len(t.labels) for t in targets), default=0)
    device = targets[0].labels.device if targets else torch.device("cpu")
    real = np.zeros((len(targets), most), bool)
    for b, mine in enumerate(counts):
        real[b, : len(mine)] = mine
    labels = torch.zeros(len(targets), most, dtype=torch.int64, device=device)
    boxes = torch.zeros(len(targets), most, 4, device=device)
    shape: tuple[int, ...] = (0, 0, 0)
    if padding is not None:
        shape = len(targets) * most, *(side // STRIDE for side in padding.shape[1:])
    masks = torch.zeros(shape, dtype=torch.bool, device=device)
    offset = STRIDE // 2
    for b, target in enumerate(targets):
        rows = len(target.labels)
        labels[b, :rows], boxes[b, :rows] = target.labels, target.boxes
        if padding is not None and rows:
            small = target.masks[:, offset::STRIDE, offset::STRIDE]
            masks[b * most : b * most + rows, : small.shape[1], : small.shape[2]] = small
    valid = to_device(real, device)
    labels *= valid  # rows that are not valid may carry a label beyond K
    return PaddedTruths(labels, boxes, valid, masks, [t.masks for t in targets], padding)


def to_device(array: Bools | Ints, device: torch.device) -> Tensor:
    """A host array on the device, without waiting for the work that the device still has to do."""
    return torch.from_numpy(array).to(device, non_blocking=True)
