"""Multi-scale deformable attention in plain PyTorch: the fallback, and the oracle of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples from every level (specification 1.5; Deformable DETR Eq. 3).

    `ops.ms_deform_attn` checks the arguments and brings them to one precision. Differentiable in
    value, locations and weights, on any device.

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
        # No pixel at all: zeros that depend on the three inputs, whose gradients are then zeros.
        zero = torch.stack([t.flatten()[:0].sum() for t in (value, locations, weights)]).sum()
        parts.append(zero.expand(images * heads, channels, queries))
    out = sum(parts[1:], parts[0])  # (N·M, C, Q)
    return out.reshape(images, heads * channels, queries).transpose(1, 2).contiguous()


def places(shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor) -> Tensor:
    """Sampling locations (N, Q, M, L, P, 2) from references and offsets (specification 1.5).

    references: (N or 1, Q, L, 2) xy: the offsets are in pixels of their level;
                (N or 1, Q, L, 4) cxcywh: P offset units are half of the box; or
                (N or 1, Q, M, L, P, 2) the first kind, repeated by `ops.spread`
    offsets:    (N, Q, M, L, P, 2)
    """
    anchor = references if references.ndim == 6 else references[:, :, None, :, None]
    if references.shape[-1] == 2:
        return torch.addcdiv(anchor, offsets, _sides(shapes, offsets))
    return anchor[..., :2] + offsets / offsets.shape[4] * anchor[..., 2:] * 0.5


def unpadded(value: Tensor, padding: Tensor | None) -> Tensor:
    """value (N, S, M, C) with zeros where padding (N or 1, S) is True."""
    return value if padding is None else value.masked_fill(padding[..., None, None], 0.0)


def attention(logits: Tensor) -> Tensor:
    """Weights from logits (N, Q, M, L, P): the softmax over L·P."""
    return logits.flatten(-2).softmax(-1).view(logits.shape)


def places_backward(
    grad: Tensor, shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of offsets and references, as in `places`, from grad (N, Q, M, L, P, 2) of it."""
    by_centre = grad.sum((2, 4))  # (N, Q, L, 2)
    if references.shape[-1] == 2:
        return grad / _sides(shapes, offsets), by_centre
    half = 0.5 / offsets.shape[4]
    by_side = (grad * offsets).sum((2, 4)) * half
    by_offsets = grad * references[:, :, None, :, None, 2:] * half
    return by_offsets, torch.cat([by_centre, by_side], -1)


def _sides(shapes: Sequence[tuple[int, int]], offsets: Tensor) -> Tensor:
    """(width, height) of the level of every offset of a query: (M, L, P, 2)."""
    # A level without pixels has no samples, but its gradients must not be 0 times infinity.
    sides = torch.tensor(
        [(max(w, 1), max(h, 1)) for h, w in shapes], dtype=offsets.dtype, device=offsets.device
    )
    return sides[:, None].expand(offsets.shape[2:]).contiguous()


def ms_deform_attn_fused(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    padding: Tensor | None = None,
) -> Tensor:
    """The same from references, offsets, logits and padding, as in `ops.ms_deform_attn_fused`."""
    locations = places(shapes, references, offsets)
    return ms_deform_attn(unpadded(value, padding), shapes, locations, attention(logits))
