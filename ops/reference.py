"""Multi-scale deformable attention in plain PyTorch: the fallback, and the oracle of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples from every level (specification 1.5; Deformable DETR Eq. 3).

    The arguments are taken as they are: `ops.ms_deform_attn` is the door that checks them and
    brings them to one precision. Differentiable in value, locations and weights, on any device.

    value:     (N, S, M, C) features of all levels, one after the other, S = Σ h·w, M heads
    shapes:    L pairs (h, w); a level without pixels contributes nothing
    locations: (N, Q, M, L, P, 2) x then y; 0 and 1 are the outer borders of a level's picture
    weights:   (N, Q, M, L, P)
    returns:   (N, Q, M·C)
    """
    images, _, heads, channels = value.shape
    queries = locations.shape[1]
    # grid_sample counts from −1 to 1 between the same borders.
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (N·M, Q, L, P, 2)
    attention = weights.transpose(1, 2).flatten(0, 1)  # (N·M, Q, L, P)
    parts: list[Tensor] = []
    start = 0
    for level, (height, width) in enumerate(shapes):
        stop = start + height * width
        if stop > start:
            picture = value[:, start:stop].permute(0, 2, 3, 1)  # (N, M, C, h·w)
            samples = F.grid_sample(
                picture.reshape(images * heads, channels, height, width),
                grids[:, :, level],
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )  # (N·M, C, Q, P)
            parts.append((samples * attention[:, None, :, level]).sum(-1))
        start = stop
    if not parts:
        # No pixel at all: zeros that still hang on the three inputs, so that backward gives
        # zero gradients instead of failing.
        zero = value.flatten()[:0].sum() + locations.flatten()[:0].sum()
        zero = zero + weights.flatten()[:0].sum()
        parts.append(zero.expand(images * heads, channels, queries))
    out = sum(parts[1:], parts[0])  # (N·M, C, Q)
    return out.reshape(images, heads * channels, queries).transpose(1, 2).contiguous()
