"""Deformable attention as operators of torch: what compiled graphs, exports and autograd see.

CUDA tensors take the CUDA kernels and CPU tensors the numba kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ops import cpu, cuda, reference

_DEVICES = ("cpu", "cuda")


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """An operator's schema knows flat lists of integers only."""
    return list(zip(sizes[::2], sizes[1::2], strict=True))


@torch.library.custom_op("idol::ms_deform_attn", mutates_args=(), device_types=_DEVICES)
def attend(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Arguments as in ops.ms_deform_attn, but sizes: h0, w0, h1, w1, ...; returns value's type."""
    shapes = _pairs(sizes)
    if value.device.type == "cuda":
        return cuda.forward(value, shapes, locations, weights)
    return cpu.forward(value, shapes, locations, weights)


@torch.library.custom_op("idol::ms_deform_attn_backward", mutates_args=(), device_types=_DEVICES)
def attend_backward(
    grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights from grad (N, Q, M·C); the others as in attend."""
    shapes = _pairs(sizes)
    if value.device.type == "cuda":
        fixed = torch.are_deterministic_algorithms_enabled()
        return cuda.backward(grad, value, shapes, locations, weights, deterministic=fixed)[:3]
    return cpu.backward(grad, value, shapes, locations, weights)


@attend.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    images, _, heads, channels = value.shape
    return value.new_empty((images, locations.shape[1], heads * channels))


@attend_backward.register_fake
def _(
    grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = (t.new_empty(t.shape) for t in (value, locations, weights))
    return a, b, c


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    by_value, by_locations, by_weights = attend_backward(grad, value, ctx.sizes, locations, weights)
    return by_value, None, by_locations, by_weights


attend.register_autograd(_gradients, setup_context=_remember)


@torch.library.custom_op("idol::ms_deform_attn_fused", mutates_args=(), device_types=_DEVICES)
def attend_fused(
    value: Tensor,
    sizes: Sequence[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    padding: Tensor | None,
) -> Tensor:
    """Arguments as in ops.ms_deform_attn_fused, but references and padding have all N images."""
    shapes = _pairs(sizes)
    if value.device.type == "cuda":
        return cuda.forward(value, shapes, offsets, logits, references, padding)
    locations = reference.places(shapes, references, offsets)
    weights = reference.attention(logits)
    return cpu.forward(reference.unpadded(value, padding), shapes, locations, weights)


@torch.library.custom_op(
    "idol::ms_deform_attn_fused_backward", mutates_args=(), device_types=_DEVICES
)
def attend_fused_backward(
    grad: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    padding: Tensor | None,
    by_references: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By value, references (empty unless asked for), offsets, logits; inputs as in attend_fused."""
    shapes = _pairs(sizes)
    if value.device.type == "cuda":
        of_value, of_offsets, of_logits, of_references = cuda.backward(
            grad, value, shapes, offsets, logits, references, padding,
            by_references=by_references, deterministic=torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip
    else:
        locations = reference.places(shapes, references, offsets)
        weights = reference.attention(logits)
        value = reference.unpadded(value, padding)
        of_value, of_places, of_weights = cpu.backward(grad, value, shapes, locations, weights)
        of_value = reference.unpadded(of_value, padding)
        of_offsets, of_references = reference.places_backward(
            of_places, shapes, references, offsets
        )
        mean = (weights * of_weights).sum((-2, -1), keepdim=True)
        of_logits = weights * (of_weights - mean)
    if of_references is None or not by_references:
        of_references = references.new_empty(0)
    return of_value, of_references, of_offsets, of_logits


@attend_fused.register_fake
def _(value: Tensor, sizes: Any, references: Tensor, offsets: Tensor, *others: Any) -> Tensor:
    images, _, heads, channels = value.shape
    return value.new_empty((images, offsets.shape[1], heads * channels))


@attend_fused_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    value, _, references, offsets, logits, _, by_references = inputs
    return (
        value.new_empty(value.shape),
        references.new_empty(references.shape if by_references else (0,)),
        offsets.new_empty(offsets.shape),
        logits.new_empty(logits.shape),
    )


def _remember_fused(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sizes, references, offsets, logits, padding = inputs
    ctx.save_for_backward(value, references, offsets, logits, padding)


def _gradients_fused(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, references, offsets, logits, padding = ctx.saved_tensors
    wanted = ctx.needs_input_grad[2]
    of_value, of_references, of_offsets, of_logits = attend_fused_backward(
        grad, value, ctx.sizes, references, offsets, logits, padding, wanted
    )
    return of_value, None, of_references if wanted else None, of_offsets, of_logits, None


attend_fused.register_autograd(_gradients_fused, setup_context=_remember_fused)
