"""Sine position encoding of a padded feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_encoding(padding: Tensor, channels: int) -> Tensor:
    """Sine and cosine of the un-padded, normalised row and column (specification 1.3).

    padding:  (B, H, W) bool, True where padded
    channels: C, half for the row and half for the column; divisible by 4
    returns:  (B, C, H, W) float32

    Rows are counted from 0.5 below one (the released code's offset, not in the original DETR) and
    divided by the count in the last row, so a partly padded map spans the full period.
    """
    valid = (~padding).float()
    half = channels // 2
    index = torch.arange(half, device=padding.device)
    period = 10000.0 ** (2 * (index // 2) / half)
    axes = []
    for dim in (1, 2):
        count = valid.cumsum(dim)
        last = count.narrow(dim, count.shape[dim] - 1, 1)
        angle = (count - 0.5) / (last + 1e-6) * (2 * math.pi)
        angle = angle[..., None] / period  # (B, H, W, C/2)
        axes.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(3))
    return torch.cat(axes, dim=-1).permute(0, 3, 1, 2)
