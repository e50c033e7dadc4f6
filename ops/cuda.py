"""Multi-scale deformable attention on NVIDIA GPUs: kernels compiled at first use, by NVRTC.

The source (`csrc/ms_deform_attn.cu`) includes no header, and is compiled for the very levels,
points, size of heads, types and architecture at hand (under a second), once for all processes of
the user.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops import nvrtc
from ops.nvrtc import CannotCompile

NAME = "ms_deform_attn"
SOURCE = Path(__file__).parent / "csrc" / "ms_deform_attn.cu"

_KINDS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
}
_LOAD_BYTES = 16  # the widest load of a thread
_WARP = 32
_SHARED_BYTES = 48 * 1024  # of a block, on every architecture, without asking for more
_MOST_HEADS_OR_IMAGES = 2**16 - 1  # of a grid's second and third side
_MOST_PIXELS = 2**27  # a row times 16 is an integer of 32 bits


@dataclass(frozen=True, slots=True)
class Specialisation:
    """What one compilation is for: all that the kernels know before they run."""

    levels: int
    """L."""
    points: int
    """P."""
    channels: int
    """C, of one head."""
    value: torch.dtype
    """Of the value and the result."""
    query: torch.dtype
    """Of offsets and logits, or of locations and weights."""
    anchor: torch.dtype = torch.float32
    """Of the references."""
    reference: int = 0
    """Numbers of a reference, 2 or 4; 0: locations and weights come in."""
    fixed_point: bool = False
    """Whether the value's gradient is summed in integers: the same bits in every run."""
    warps: int = 4
    """Warps of a block."""
    load: int = _LOAD_BYTES
    """Bytes of the widest load of a lane."""
    unroll: int | None = None
    """Samples in flight; None takes what was chosen for the type."""
    blocks: int | None = None
    """Blocks of a multiprocessor that the registers must allow; None as for unroll."""

    @property
    def real(self) -> torch.dtype:
        """The precision of sums: double as soon as one argument is."""
        used = (self.value, self.query, *((self.anchor,) if self.reference else ()))
        return torch.float64 if torch.float64 in used else torch.float32

    def layout(self) -> tuple[int, int, int, int]:
        """(channels of a load, lanes of an item, items of a warp, warps of a block).

        Raises: CannotCompile: one item's samples do not fit into shared memory.
        """
        size = self.value.itemsize
        vector = max(self.load // size, 1)
        while self.channels % vector:
            vector //= 2
        lanes = min(self.channels // vector, _WARP)
        # Two records for a sample in the backward, and the sizes of the levels.
        record = 2 * 4 * self.real.itemsize * self.levels * self.points
        room = (_SHARED_BYTES - 12 * self.levels) // record
        if room == 0:
            raise CannotCompile(
                f"{self.levels} levels of {self.points} points do not fit into shared memory"
            )
        items = min(_WARP // lanes, room)
        return vector, lanes, items, max(min(self.warps, room // items), 1)

    def shares(self) -> tuple[int, int]:
        """(samples for which a lane makes the records, how many of them it reads at once)."""
        samples, lanes = self.levels * self.points, self.layout()[1]
        share = -(-samples // lanes)
        # A pair of coordinates for each; a load begins at a multiple of its own size.
        return share, math.gcd(share, samples, _LOAD_BYTES // (2 * self.query.itemsize))

    def source(self) -> str:
        """The text to compile: these numbers as macros, then the kernels."""
        vector, lanes, items, warps = self.layout()
        # Chosen from NVRTC's reports: no spills on any architecture. Half precision converts
        # eight channels a load, and has no registers left for four samples at once; nor has a
        # lane that makes the records of many samples, or has channels in several pieces.
        share, chunk = self.shares()
        half = self.value.itemsize == 2
        usual = (
            self.levels * self.points <= 2 * lanes
            and self.channels <= vector * lanes
            and lanes & (lanes - 1) == 0
        )
        blocks = 6 if half else 8 if usual else 4
        levels = range(self.levels)
        macros = {
            "LEVELS": self.levels,
            "POINTS": self.points,
            "CHANNELS": self.channels,
            "VALUE": _KINDS[self.value],
            "QUERY": _KINDS[self.query],
            "ANCHOR": _KINDS[self.anchor],
            "REFERENCE": self.reference,
            "VECTOR": vector,
            "LANES": lanes,
            "ITEMS": items,
            "WARPS": warps,
            "SHARE": share,
            "CHUNK": chunk,
            "UNROLL": self.unroll or (2 if half else 4),
            "BLOCKS": self.blocks or blocks,
            "FIXED_POINT": int(self.fixed_point),
            "LEVEL_PARAMETERS": ", ".join(f"int h{i}, int w{i}" for i in levels),
            "LEVEL_SIZES": ", ".join(f"h{i}, w{i}" for i in levels),
        }
        lines = [f"#define {name} {meaning}" for name, meaning in macros.items()]
        return "\n".join([*lines, "#line 1", SOURCE.read_text()])


@functools.cache
def _loaded(specialisation: Specialisation, device: int) -> tuple[Any, ...]:
    """(forward, backward) on that device."""
    return nvrtc.load(NAME, specialisation.source(), device, ("forward", "backward"))


@functools.cache
def unusable(specialisation: Specialisation, device: int) -> str | None:
    """Why these kernels cannot run on that device, in one line; None when they can.

    The first question compiles them, or reads them from the cache.
    """
    try:
        specialisation.layout()
        _loaded(specialisation, device)
    except CannotCompile as error:
        return str(error).splitlines()[0]
    return None


def _aligned(*tensors: Tensor | None) -> list[Tensor | None]:
    """Contiguous, and beginning where a wide load may begin."""
    found = [None if t is None else t.detach().contiguous() for t in tensors]
    return [t.clone() if t is not None and t.data_ptr() % _LOAD_BYTES else t for t in found]


def specialisation_of(
    value: Tensor, places: Tensor, references: Tensor | None, fixed_point: bool = False
) -> Specialisation:
    """The compilation that arguments as in `forward` need."""
    levels, points = places.shape[3:5]
    anchor, kind = torch.float32, 0
    if references is not None:
        anchor, kind = references.dtype, references.shape[-1]
    sizes = (levels, points, value.shape[3])
    return Specialisation(*sizes, value.dtype, places.dtype, anchor, kind, fixed_point)


def launch(
    which: int,
    specialisation: Specialisation,
    tensors: Sequence[Tensor | None],
    value: Tensor,
    queries: int,
    shapes: Sequence[tuple[int, int]],
) -> None:
    """Start the forward (which 0) or backward (1) kernel on torch's current stream.

    tensors: its pointers in the order of the source, contiguous, None for null
    value:   (N, S, M, C) as in `forward`; it names sizes and device
    Raises: CannotCompile: there are more images, pixels or heads than the kernels count.
    """
    import numpy as np

    images, pixels, heads, _ = value.shape
    _, _, items, warps = specialisation.layout()
    blocks = (-(-queries // (items * warps)), heads, images)
    if max(heads, images) > _MOST_HEADS_OR_IMAGES or pixels >= _MOST_PIXELS:
        raise CannotCompile(
            f"{images} images of {pixels} pixels and {heads} heads are more than the kernels count"
        )
    sides = [side for level in shapes for side in level]
    numbers = [np.int32(number) for number in (images, pixels, heads, queries, *sides)]
    device = value.device.index
    kernel = _loaded(specialisation, device)[which]
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    nvrtc.launch(kernel, device, blocks, warps * _WARP, *pointers, *numbers)


def forward(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    places: Tensor,
    weights: Tensor,
    references: Tensor | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    """The attention without gradient, in one kernel.

    value:      (N, S, M, C); the result has its type
    shapes:     L pairs (h, w)
    places:     (N, Q, M, L, P, 2) locations; with references, offsets
    weights:    (N, Q, M, L, P) of the type of places; with references, logits
    references: (N, Q, L, 2 or 4)
    padding:    (N, S) bool, True where the value counts as zero
    returns:    (N, Q, M·C)
    Raises: CannotCompile: as `launch`.
    """
    images, pixels, heads, channels = value.shape
    queries = places.shape[1]
    out = value.new_empty((images, queries, heads * channels))
    if out.numel() == 0 or pixels * weights.shape[3] * weights.shape[4] == 0:
        return out.zero_()
    specialisation = specialisation_of(value, places, references)
    tensors = [*_aligned(value, places, weights, references, padding), out]
    launch(0, specialisation, tensors, value, queries, shapes)
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    places: Tensor,
    weights: Tensor,
    references: Tensor | None = None,
    padding: Tensor | None = None,
    *,
    by_references: bool = False,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of value, places, weights and, if asked for, references.

    grad:          (N, Q, M·C) of the type of value; the rest as in `forward`
    deterministic: sum the value's gradient in 64-bit integers, whose sum does not depend on the
                   order: about 40 bits below the largest possible sum, slower, twice the memory
    Raises: CannotCompile: as `launch`.
    """
    images, pixels, heads, _ = value.shape
    queries, levels, points = places.shape[1], places.shape[3], places.shape[4]
    fixed = specialisation_of(value, places, references, fixed_point=deterministic)
    # Four channels a lane, also of 16 bits: then the additions of neighbouring lanes, of four
    # float32 each, lie side by side. With eight they took twice as long as those of float32.
    fixed = dataclasses.replace(fixed, load=min(4 * value.element_size(), _LOAD_BYTES))
    sums = torch.zeros(
        value.shape, dtype=torch.int64 if deterministic else fixed.real, device=value.device
    )
    grad_places = torch.empty_like(places, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    grad_references = None
    if references is not None and by_references:
        size = (images, queries, heads, levels, references.shape[-1])
        grad_references = torch.empty(size, dtype=fixed.real, device=value.device)
    if grad.numel() == 0 or pixels * levels * points == 0:
        for tensor in (grad_places, grad_weights, grad_references):
            if tensor is not None:
                tensor.zero_()
    else:
        scale = _units(grad, weights, references, queries * points) if deterministic else None
        scale = None if scale is None else scale.to(fixed.real)
        inputs = _aligned(grad, value, places, weights, references, padding)
        outputs = (sums, grad_places, grad_weights, grad_references)
        launch(1, fixed, [*inputs, scale, *outputs], value, queries, shapes)
        if scale is not None:
            sums = sums.to(torch.float64) / scale
    total = None
    if references is not None and grad_references is not None:
        total = grad_references.sum(2).to(references.dtype)
    return sums.to(value.dtype), grad_places, grad_weights, total


def _units(grad: Tensor, weights: Tensor, references: Tensor | None, adds: int) -> Tensor:
    """The power of two by which a sum of so many parts of the gradient fills 62 bits at most."""
    largest = grad.abs().amax().to(torch.float64)
    if references is None:  # else they come from a softmax
        largest = largest * weights.abs().amax().to(torch.float64)
    # A gradient that is not finite makes the unit, and so every sum, NaN. One of zeros makes it
    # infinite, which must not be multiplied.
    power = torch.floor(62 - torch.log2(largest * adds)).clamp(max=100)
    return torch.exp2(torch.where(largest.isfinite(), power, torch.nan))
