"""Bilinear resizing of uint8 pictures that averages where it shrinks, by additions and products of
whole numbers: bit for bit what torch's `interpolate(antialias=True)` makes of uint8 on a CPU, for
programs that have no such operator.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from idol.arrays import Ints

_BITS = 15  # a weight is below 2^15, as torch's


def taps(length: int, output_length: int) -> tuple[Ints, Ints, int]:
    """Which pixels each pixel of the output is the weighted sum of, along one axis.

    returns: (output_length, T) int64 source indices, their weights (0 where there are fewer than
             T), and the number of bits behind the weights' point
    """
    scale = length / output_length
    support = max(scale, 1.0)
    indices = np.zeros((output_length, 2 * math.ceil(support) + 1), np.int64)
    shares = np.zeros(indices.shape)
    for place in range(output_length):
        centre = scale * (place + 0.5)
        first = max(int(centre - support + 0.5), 0)
        reach = np.arange(first, min(int(centre + support + 0.5), length))
        share = np.maximum(1 - np.abs((reach - centre + 0.5) / support), 0)
        indices[place, : len(reach)] = reach
        shares[place, : len(reach)] = share / share.sum()
    point = 0
    while point < 22 and int(0.5 + shares.max() * (1 << (point + 1))) < 1 << _BITS:
        point += 1
    weights = np.floor(shares * (1 << point) + 0.5).astype(np.int64)
    used = int(np.flatnonzero(weights.any(axis=0)).max()) + 1
    return indices[:, :used], weights[:, :used], point


def along(pixels: Tensor, axis: int, indices: Tensor, weights: Tensor, point: int) -> Tensor:
    """Resize one axis by its `taps`; torch does the columns first.

    pixels:  (...) int32, 0 to 255
    indices: (O, T) as `taps` gives them
    weights: (O, T) int32
    returns: pixels with O entries along the axis
    """
    shape = [1] * pixels.ndim
    shape[axis] = -1
    total = torch.full_like(pixels.select(axis, 0).unsqueeze(axis), 1 << point >> 1)
    for tap in range(indices.shape[1]):
        part = pixels.index_select(axis, indices[:, tap])
        total = total + part * weights[:, tap].reshape(shape)
    return total.div(1 << point, rounding_mode="trunc").clamp(0, 255)
