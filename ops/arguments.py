"""The rules for the arguments of deformable attention, each with what came instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Levels = tuple[tuple[int, int], ...]


def levels_of(shapes: Sequence[tuple[int, int]]) -> Levels:
    """Plain integers, whatever sequence of pairs came."""
    levels = tuple(tuple(int(side) for side in shape) for shape in shapes)
    for index, level in enumerate(levels):
        if len(level) != 2 or min(level) < 0:
            raise ValueError(
                f"shapes must be pairs (height, width) of sizes ≥ 0, but level {index} is {level}; "
                f"give one pair for each feature level, in the order of value's second dimension."
            )
    return tuple((level[0], level[1]) for level in levels)


def check_floating(**named: Tensor) -> None:
    """All floating, and all on the device of the first."""
    (first, leader), *_ = named.items()
    for name, tensor in named.items():
        if not tensor.dtype.is_floating_point:
            raise TypeError(
                f"{name} must be a floating-point tensor, got {tensor.dtype}; convert it with "
                f"{name}.float()."
            )
        if tensor.device != leader.device:
            *others, last = named
            raise ValueError(
                f"{', '.join(others)} and {last} must be on one device, but {first} is on "
                f"{leader.device} and {name} on {tensor.device}; move them with .to()."
            )


def check_value(value: Tensor, levels: Levels) -> None:
    """value (N, S, M, C) has the pixels of these levels."""
    if value.dim() != 4:
        raise ValueError(
            f"value must be (N, S, M, C): images, pixels of all levels, heads, channels; got "
            f"{tuple(value.shape)}. Split the heads with value.unflatten(-1, (heads, -1))."
        )
    total = sum(height * width for height, width in levels)
    if value.shape[1] != total:
        raise ValueError(
            f"value must hold the pixels of all levels one after the other: {total} for shapes "
            f"{list(levels)}, got {value.shape[1]} in value {tuple(value.shape)}. Are shapes "
            f"(height, width), and of the same levels?"
        )


def check_samples(
    value: Tensor, levels: Levels, places: tuple[str, Tensor], strengths: tuple[str, Tensor]
) -> None:
    """places (N, Q, M, L, P, 2) and strengths (N, Q, M, L, P), under the names they came by."""
    (name, points), (other, weights) = places, strengths
    images, _, heads, _ = value.shape
    if points.dim() != 6 or points.shape[-1] != 2:
        raise ValueError(
            f"{name} must be (N, Q, M, L, P, 2), got {tuple(points.shape)}: one (x, y) for "
            f"every image, query, head, level and point."
        )
    if (points.shape[0], *points.shape[2:4]) != (images, heads, len(levels)):
        raise ValueError(
            f"{name} must have N, M, L = {images}, {heads}, {len(levels)} as in value "
            f"{tuple(value.shape)} and the {len(levels)} shapes, got {tuple(points.shape)} "
            f"read as (N, Q, M, L, P, 2)."
        )
    if weights.shape != points.shape[:-1]:
        raise ValueError(
            f"{other} must be (N, Q, M, L, P) = {tuple(points.shape[:-1])} as in {name}, "
            f"got {tuple(weights.shape)}."
        )


def check_references(references: Tensor, offsets: Tensor) -> None:
    """references (N or 1, Q, L, 2 or 4) or (N or 1, Q, M, L, P, 2) fit offsets of all N images."""
    images, queries, _, levels, _, _ = offsets.shape
    shape = tuple(references.shape)
    layouts = ((queries, levels, 2), (queries, levels, 4), tuple(offsets.shape[1:]))
    if shape[:1] not in ((1,), (images,)) or shape[1:] not in layouts:
        raise ValueError(
            f"references must be (N or 1, Q, L, 2) for points or (N or 1, Q, L, 4) for boxes with "
            f"N, Q, L = {images}, {queries}, {levels} as in offsets {tuple(offsets.shape)}, got "
            f"{shape}."
        )


def check_padding(padding: Tensor, value: Tensor) -> None:
    """padding (N or 1, S) bool says of every pixel of value (N, S, M, C) whether it counts."""
    images, pixels = value.shape[:2]
    if padding.dtype != torch.bool:
        raise TypeError(
            f"padding must be boolean, True where padded, got {padding.dtype}; convert it with "
            f"padding.bool()."
        )
    if padding.dim() != 2 or padding.shape[0] not in (1, images) or padding.shape[1] != pixels:
        raise ValueError(
            f"padding must be (N or 1, S) with N, S = {images}, {pixels} as in value "
            f"{tuple(value.shape)}, got {tuple(padding.shape)}."
        )
    if padding.device != value.device:
        raise ValueError(
            f"padding must be on the device of value, {value.device}, but is on {padding.device}; "
            f"move it with .to()."
        )
