"""Mask IoU of every pair, exactly as the released tracker computes it (specification 4.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from idol.arrays import Bools, Ints


def mask_iou(masks: Tensor) -> Tensor:
    """Mask IoU of every pair of masks.

    masks:   (N, h, w) bool
    returns: (N, N) float32 on the device of masks, symmetric
    Raises: ValueError: masks does not have three axes.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks must have shape (N, h, w), got {tuple(masks.shape)}")
    flat = masks.flatten(1).bool()
    if not flat.is_cuda:
        return iou_of_shared(torch.from_numpy(_shared_pixels(flat.numpy())))
    # Products of 0 and 1 are exact in any precision; float32 sums are, up to 2^24 pixels.
    exact = torch.float32 if flat.shape[1] < 2**24 else torch.float64
    return iou_of_shared(flat.to(exact) @ flat.to(exact).T)


def iou_of_shared(shared: Tensor) -> Tensor:
    """Mask IoU from counts of pixels: (intersection + 1e-6) / (union + 1e-6) in float32.

    A small mask can lie exactly on a threshold, where the rounding of float32 decides. Two empty
    masks have IoU 1.

    shared:  (N, N) pixels that every two masks share; the diagonal holds their areas
    returns: (N, N) float32
    """
    areas = shared.diagonal()
    union = areas[:, None] + areas[None] - shared
    return (shared.float() + 1e-6) / (union.float() + 1e-6)


def _shared_pixels(masks: Bools) -> Ints:
    """(N, N) pixels that every two of N masks (N, pixels) share, counted 64 at a time."""
    count = len(masks)
    bits = np.packbits(masks, axis=1)
    padded = np.zeros((count, -(-bits.shape[1] // 8) * 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    words = padded.view(np.uint64)
    shared = np.zeros((count, count), np.int64)
    if words.shape[1]:
        used = words != 0
        # Only the words from a mask's first pixel to its last can be shared with another mask.
        first = used.argmax(axis=1).tolist()
        behind = (words.shape[1] - used[:, ::-1].argmax(axis=1)).tolist()
        for i in range(count):
            part = words[i:, first[i] : behind[i]]
            shared[i, i:] = np.bitwise_count(part & part[0]).sum(axis=1, dtype=np.int64)
            shared[i:, i] = shared[i, i:]
    return shared
