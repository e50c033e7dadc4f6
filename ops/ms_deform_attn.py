"""Multi-scale deformable attention: the public function and the module around it.

Which implementation computes is decided in `ops.backend`; IDOL_MSDA_BACKEND forces one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ops import arguments, cpu, operators, reference
from ops.arguments import Levels
from ops.backend import Backend, choose
from ops.linear import linear


def ms_deform_attn(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples from every level (specification 1.5; Deformable DETR Eq. 3).

    Samples lie at x·w − 0.5, y·h − 0.5 in pixels of the level, and outside its picture there are
    zeros. Half precision is computed in float32, also under autocast. Differentiable once in value,
    locations and weights. On CUDA the order in which the value's gradient is summed is not fixed;
    under torch.use_deterministic_algorithms(True) it is summed in integers, the same in every run.

    value:     (N, S, M, C) features of all levels, one after the other, S = Σ h·w, M heads
    shapes:    L pairs (h, w); a level may be empty
    locations: (N, Q, M, L, P, 2) x then y; 0 and 1 are the outer borders of a level's picture
    weights:   (N, Q, M, L, P)    usually a softmax over L·P
    returns:   (N, Q, M·C)        in the precision of value
    Raises:
        ValueError: shapes do not fit, or an IDOL_MSDA_BACKEND cannot be had.
        TypeError: a tensor is not floating.
    """
    levels = arguments.levels_of(shapes)
    arguments.check_floating(value=value, locations=locations, weights=weights)
    arguments.check_value(value, levels)
    arguments.check_samples(value, levels, ("locations", locations), ("weights", weights))
    # At least float32: locations of 16 bits would move samples by whole pixels on large levels.
    common = _common(value, locations, weights)
    backend = _backend(value, locations, common)
    # The CUDA kernels read halves as they are and compute in float32.
    kind = value.dtype if backend == "cuda" and common is torch.float32 else common
    inputs = (value.to(kind), locations.to(common), weights.to(common))
    return _attend(backend, levels, *inputs).to(value.dtype)


def ms_deform_attn_fused(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    padding: Tensor | None = None,
) -> Tensor:
    """The same from what a network has: reference points or boxes, offsets, attention logits.

    On CUDA the softmax, the locations and the padding are part of the one kernel. Differentiable
    once in value, references, offsets and logits.

    value:      (N, S, M, C), and shapes: as in ms_deform_attn
    references: (N or 1, Q, L, 2) xy, offsets then being pixels of their level; or (N or 1, Q, L, 4)
                cxcywh, P units of offset then being half of the box; both in units of each level's
                sides. Or points as `spread` repeats them
    offsets:    (N, Q, M, L, P, 2)
    logits:     (N, Q, M, L, P) before the softmax over L·P
    padding:    (N or 1, S) bool, True where the value counts as zero; None: nowhere
    returns:    (N, Q, M·C) in the precision of value
    Raises: as ms_deform_attn.
    """
    levels = arguments.levels_of(shapes)
    arguments.check_floating(value=value, references=references, offsets=offsets, logits=logits)
    arguments.check_value(value, levels)
    arguments.check_samples(value, levels, ("offsets", offsets), ("logits", logits))
    arguments.check_references(references, offsets)
    if padding is not None:
        arguments.check_padding(padding, value)
    common, dtype = _common(value, references, offsets, logits), value.dtype
    backend = _backend(value, offsets, common, references)
    if backend == "cuda":
        images, queries = offsets.shape[:2]
        if references.ndim == 6:
            references = references[:, :, 0, :, 0]
        references = references.expand(images, queries, len(levels), -1)
        if padding is not None:
            padding = padding.expand(images, -1)
        # One type for what a query brings; references never lose bits they came with.
        query = torch.promote_types(offsets.dtype, logits.dtype)
        if common is torch.float64:
            value, query = value.double(), common
        references, offsets, logits = references.to(common), offsets.to(query), logits.to(query)
        sizes = _flat(levels)
        out: Tensor = operators.attend_fused(value, sizes, references, offsets, logits, padding)
        return out.to(dtype)
    value = reference.unpadded(value, padding).to(common)
    locations = reference.places(levels, references.to(common), offsets.to(common))
    weights = reference.attention(logits.to(common))
    return _attend(backend, levels, value, locations, weights).to(dtype)


def spread(references: Tensor, heads: int, points: int) -> Tensor:
    """References (N or 1, Q, L, 2) for several layers: (N or 1, Q, M, L, P, 2) where it is faster.

    Adding numbers that lie side by side is five times as fast on a CPU as adding one to its
    neighbours; elsewhere they come back as they are.
    """
    if references.device.type != "cpu":
        return references
    layout = (*references.shape[:2], heads, references.shape[2], points, 2)
    return references[:, :, None, :, None].expand(layout).contiguous()


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention around reference points, with its projections.

    Parameters, their names and how they start are those of Deformable DETR's module: every head
    first looks in its own direction, point p at distance p + 1, with equal attention.

    width:  C of queries and tokens, a multiple of heads
    levels: L feature maps; points: P samples on each, for each of the heads
    """

    def __init__(self, width: int = 256, heads: int = 8, points: int = 4, levels: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width must be a multiple of heads, got {width} for {heads} heads; choose for "
                f"example {-(-width // heads) * heads}."
            )
        self.heads, self.points, self.levels = heads, points, levels
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        steps = torch.arange(1, points + 1)[:, None] * direction[:, None, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.expand(-1, levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attend from every query to the feature maps around its reference.

        query:      (N, Q, C)
        references: (N or 1, Q, L, 2 or 4), or what `spread` made of them: as ms_deform_attn_fused
        tokens:     (N, S, C) the flattened levels
        shapes:     ((h, w), ...) of the L levels
        padding:    (N or 1, S) bool, True where padded: value zero
        returns:    (N, Q, C)
        """
        sampled = self.sample(query, references, tokens, shapes, padding)
        return linear(self.output_proj, sampled)

    def sample(
        self,
        query: Tensor,
        references: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """What output_proj is applied to, (N, Q, C); query, references, tokens, shapes and padding
        as of forward."""
        value = linear(self.value_proj, tokens)
        if padding is not None and value.device.type != "cuda":
            # In place where there is no gradient: see ops.linear.
            fill = value.masked_fill if torch.is_grad_enabled() else value.masked_fill_
            value, padding = fill(padding[..., None], 0.0), None
        value = value.view(*value.shape[:2], self.heads, -1)
        layout = (self.heads, self.levels, self.points)
        rows = query.shape[:2]
        offsets = linear(self.sampling_offsets, query).view(*rows, *layout, 2)
        logits = linear(self.attention_weights, query).view(*rows, *layout)
        return ms_deform_attn_fused(value, shapes, references, offsets, logits, padding)


def _common(*tensors: Tensor) -> torch.dtype:
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


def _backend(
    value: Tensor, places: Tensor, common: torch.dtype, references: Tensor | None = None
) -> Backend:
    single = common is torch.float32
    dtypes = (
        value.dtype if single else common,
        places.dtype if single and references is not None else common,
        common,
    )
    sizes = (places.shape[3], places.shape[4], value.shape[3])
    kind = 0 if references is None else references.shape[-1]
    backend: Backend = choose(value.device.type, value.device.index, sizes, dtypes, kind)
    return backend


def _attend(
    backend: Backend, levels: Levels, value: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """By the backend's kernel, or in plain PyTorch anywhere."""
    if backend == "torch":
        return reference.ms_deform_attn(value, levels, locations, weights)
    watched = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
    if backend == "cpu" and not torch.is_grad_enabled() and not watched:
        # Not as an operator of torch, whose first call imports torch's compiler: 1.5 s.
        return cpu.forward(value, levels, locations, weights)
    out: Tensor = operators.attend(value, _flat(levels), locations, weights)
    return out


def _flat(levels: Levels) -> list[int]:
    return [side for level in levels for side in level]
