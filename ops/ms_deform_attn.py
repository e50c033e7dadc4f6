"""Multi-scale deformable attention: the public function, which checks and picks the backend.

The environment variable IDOL_MSDA_BACKEND forces one: `cpu` (numba kernels) or `torch` (plain
PyTorch). Unset, tensors on the CPU take the kernels and all others plain PyTorch.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops import cpu, reference

logger = logging.getLogger(__name__)

BACKEND_VARIABLE = "IDOL_MSDA_BACKEND"


def ms_deform_attn(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples from every level (specification 1.5; Deformable DETR Eq. 3).

    Samples lie at x·w − 0.5, y·h − 0.5 in pixels of the level, and outside its picture there are
    zeros. Half precision is computed in float32, also under autocast. Differentiable once in value,
    locations and weights.

    value:     (N, S, M, C) features of all levels, one after the other, S = Σ h·w, M heads
    shapes:    L pairs (h, w); a level may be empty
    locations: (N, Q, M, L, P, 2) x then y; 0 and 1 are the outer borders of a level's picture
    weights:   (N, Q, M, L, P)    usually a softmax over L·P
    returns:   (N, Q, M·C)        in the precision of value
    raises:    ValueError for shapes that do not fit or an IDOL_MSDA_BACKEND that cannot be had,
               TypeError for tensors that are not floating
    """
    levels = _levels(shapes)
    _check(value, levels, locations, weights)
    dtype = value.dtype
    # The finest precision that came in, at least float32: locations of 16 bits would move the
    # samples by whole pixels on large levels.
    common = torch.promote_types(value.dtype, locations.dtype)
    common = torch.promote_types(torch.promote_types(common, weights.dtype), torch.float32)
    value, locations, weights = value.to(common), locations.to(common), weights.to(common)
    if _backend(value.device.type) == "cpu":
        sizes = [side for level in levels for side in level]
        out: Tensor = _kernel(value, sizes, locations, weights)
        return out.to(dtype)
    return reference.ms_deform_attn(value, levels, locations, weights).to(dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _backend(device: str) -> str:
    """`cpu` or `torch`, for tensors on that kind of device; a compiled graph keeps the answer."""
    asked = os.environ.get(BACKEND_VARIABLE, "")
    if asked == "torch":
        return "torch"
    if asked == "cpu":
        if device != "cpu":
            raise ValueError(
                f"{BACKEND_VARIABLE}=cpu computes on the CPU, but the tensors are on {device}; "
                f"move them, or unset {BACKEND_VARIABLE}."
            )
        if reason := cpu.missing():
            raise ValueError(
                f"{BACKEND_VARIABLE}=cpu needs the numba kernels, but {reason}; install numba, or "
                f"unset {BACKEND_VARIABLE}."
            )
        return "cpu"
    if asked == "cuda":
        raise ValueError(
            f"{BACKEND_VARIABLE}=cuda, but this version has no CUDA kernel; set it to torch, which "
            f"runs on CUDA tensors too, or unset it."
        )
    if asked:
        raise ValueError(
            f"{BACKEND_VARIABLE} must be cpu or torch, got {asked!r}; unset it to let the "
            f"tensors decide."
        )
    if device != "cpu":
        _say_once(f"deformable attention runs in plain PyTorch on {device}: it has no kernel there")
        return "torch"
    if reason := cpu.missing():
        _say_once(f"deformable attention runs in plain PyTorch, many times slower: {reason}")
        return "torch"
    return "cpu"


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


@torch.library.custom_op("idol::ms_deform_attn", mutates_args=(), device_types="cpu")
def _kernel(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return cpu.forward(value, _pairs(sizes), locations, weights)


@torch.library.custom_op("idol::ms_deform_attn_backward", mutates_args=(), device_types="cpu")
def _kernel_backward(
    grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return cpu.backward(grad, value, _pairs(sizes), locations, weights)


@_kernel.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    images, _, heads, channels = value.shape
    return value.new_empty((images, locations.shape[1], heads * channels))


@_kernel_backward.register_fake
def _(
    grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    by_value, by_locations, by_weights = _kernel_backward(
        grad, value, ctx.sizes, locations, weights
    )
    return by_value, None, by_locations, by_weights


_kernel.register_autograd(_gradients, setup_context=_remember)


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """An operator's schema knows flat lists of integers only."""
    return list(zip(sizes[::2], sizes[1::2], strict=True))


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
