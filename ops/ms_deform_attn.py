"""Multi-scale deformable attention: the public function, which checks its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ops import reference


def ms_deform_attn(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples from every level (specification 1.5; Deformable DETR Eq. 3).

    Samples lie at x·w − 0.5, y·h − 0.5 in pixels of the level, and outside its picture there are
    zeros. Half precision is computed in float32. Differentiable once in value, locations and weights.

    value:     (N, S, M, C) features of all levels, one after the other, S = Σ h·w, M heads
    shapes:    L pairs (h, w); a level may be empty
    locations: (N, Q, M, L, P, 2) x then y; 0 and 1 are the outer borders of a level's picture
    weights:   (N, Q, M, L, P)    usually a softmax over L·P
    returns:   (N, Q, M·C)        in the precision of value
    raises:    ValueError for shapes that do not fit, TypeError for tensors that are not floating
    """
    levels = _levels(shapes)
    _check(value, levels, locations, weights)
    dtype = value.dtype
    # The finest precision that came in, at least float32: locations of 16 bits would move the
    # samples by whole pixels on large levels.
    common = torch.promote_types(value.dtype, locations.dtype)
    common = torch.promote_types(torch.promote_types(common, weights.dtype), torch.float32)
    value, locations, weights = value.to(common), locations.to(common), weights.to(common)
    return reference.ms_deform_attn(value, levels, locations, weights).to(dtype)


def _levels(shapes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Plain integers, whatever sequence of pairs came."""
    levels = tuple(tuple(int(side) for side in shape) for shape in shapes)
    for index, level in enumerate(levels):
        if len(level) != 2 or min(level) < 0:
            raise ValueError(
                f"shapes must be pairs (height, width) of sizes ≥ 0, but level {index} is {level}; "
                f"give one pair for each feature level, in the order of value's second dimension."
            )
    return tuple((level[0], level[1]) for level in levels)


def _check(
    value: Tensor, levels: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> None:
    """Every rule about sizes, kinds and devices, each with what came instead."""
    named = {"value": value, "locations": locations, "weights": weights}
    for name, tensor in named.items():
        if not tensor.dtype.is_floating_point:
            raise TypeError(
                f"{name} must be a floating-point tensor, got {tensor.dtype}; convert it with "
                f"{name}.float()."
            )
        if tensor.device != value.device:
            raise ValueError(
                f"value, locations and weights must be on one device, but value is on "
                f"{value.device} and {name} on {tensor.device}; move them with .to()."
            )
    if value.dim() != 4:
        raise ValueError(
            f"value must be (N, S, M, C): images, pixels of all levels, heads, channels; got "
            f"{tuple(value.shape)}. Split the heads with value.unflatten(-1, (heads, -1))."
        )
    images, pixels, heads, _ = value.shape
    total = sum(height * width for height, width in levels)
    if pixels != total:
        raise ValueError(
            f"value must hold the pixels of all levels one after the other: {total} for shapes "
            f"{list(levels)}, got {pixels} in value {tuple(value.shape)}. Are shapes (height, "
            f"width), and of the same levels?"
        )
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(
            f"locations must be (N, Q, M, L, P, 2), got {tuple(locations.shape)}: one (x, y) for "
            f"every image, query, head, level and point."
        )
    if (locations.shape[0], *locations.shape[2:4]) != (images, heads, len(levels)):
        raise ValueError(
            f"locations must have N, M, L = {images}, {heads}, {len(levels)} as in value "
            f"{tuple(value.shape)} and the {len(levels)} shapes, got {tuple(locations.shape)} "
            f"read as (N, Q, M, L, P, 2)."
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"weights must be (N, Q, M, L, P) = {tuple(locations.shape[:-1])} as in locations, "
            f"got {tuple(weights.shape)}."
        )
