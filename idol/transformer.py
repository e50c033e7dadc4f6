"""Deformable encoder and decoder with iterative box refinement (specification 1.4 – 1.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idol.config import ModelConfig
from ops import ms_deform_attn

NUM_LEVELS = 4
"""L: strides 8, 16, 32 of the backbone and one more at 64."""


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int = 3) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs) → (..., outputs)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


def inverse_sigmoid(x: Tensor) -> Tensor:
    """log(x / (1 − x)) with x and 1 − x floored at 1e-5 (specification 1.6)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5))


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention around reference points (specification 1.5)."""

    def __init__(self, width: int, heads: int, points: int, levels: int = NUM_LEVELS) -> None:
        super().__init__()
        self.heads, self.points, self.levels = heads, points, levels
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        # Every head starts looking in its own direction, point p at distance p + 1.
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
        padding: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend from every query to the feature maps around its reference.

        query:      (B, Q, C)
        references: (B, Q, L, 2) xy, or (B, Q, L, 4) cxcywh; in units of each padded level
        tokens:     (B, S, C) the flattened levels
        padding:    (B, S) bool, True where padded: value zero
        shapes:     [(h, w), ...] of the L levels
        returns:    (B, Q, C)
        """
        batch, count = query.shape[:2]
        value = self.value_proj(tokens).masked_fill(padding[..., None], 0.0)
        value = value.unflatten(-1, (self.heads, -1))
        layout = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).view(batch, count, *layout, 2)
        weights = self.attention_weights(query).view(batch, count, self.heads, -1)
        weights = weights.softmax(-1).view(batch, count, *layout)
        anchor = references[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if references.shape[-1] == 2:
            sides = torch.tensor(
                [(w, h) for h, w in shapes], dtype=offsets.dtype, device=offsets.device
            )
            locations = anchor + offsets / sides[:, None]
        else:
            locations = anchor[..., :2] + offsets / self.points * anchor[..., 2:] * 0.5
        out: Tensor = self.output_proj(ms_deform_attn(value, shapes, locations, weights))
        return out


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward block, each followed by a LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(config.width, config.num_heads, config.num_points)
        self.norm1 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        references: Tensor,
        padding: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """One round of self-attention over the pyramid.

        tokens, positions: (B, S, C)
        references:        (B, S, L, 2) every token's centre, see encoder_references
        padding:           (B, S) bool, True where padded
        returns:           (B, S, C)
        """
        attended = self.self_attn(tokens + positions, references, tokens, padding, shapes)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(tokens))))
        out: Tensor = self.norm2(tokens + self.dropout(hidden))
        return out


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention, feed-forward (norms 2, 1, 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cross_attn = DeformableAttention(config.width, config.num_heads, config.num_points)
        self.norm1 = nn.LayerNorm(config.width)
        self.self_attn = nn.MultiheadAttention(
            config.width, config.num_heads, dropout=config.dropout, batch_first=True
        )
        self.norm2 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.width)
        self.norm3 = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        references: Tensor,
        tokens: Tensor,
        padding: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """One round: queries look at each other, then at the picture.

        states, positions: (B, Q, C)
        references:        (B, Q, L, 2 or 4) where each query looks, in units of each padded level
        tokens:            (B, S, C) encoder output
        padding:           (B, S) bool, True where padded
        returns:           (B, Q, C)
        """
        query = states + positions
        attended = self.self_attn(query, query, states, need_weights=False)[0]
        states = self.norm2(states + self.dropout(attended))
        attended = self.cross_attn(states + positions, references, tokens, padding, shapes)
        states = self.norm1(states + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(states))))
        out: Tensor = self.norm3(states + self.dropout(hidden))
        return out


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The L feature levels, flattened to S tokens.

    tokens:       (B, S, C)
    positions:    (B, S, C) sine encoding plus level embedding
    padding:      (B, S) bool
    valid_ratios: (B, L, 2) un-padded share of each level, (x, y)
    shapes:       [(h, w), ...]
    """

    tokens: Tensor
    positions: Tensor
    padding: Tensor
    valid_ratios: Tensor
    shapes: tuple[tuple[int, int], ...]


def valid_ratios(paddings: Sequence[Tensor]) -> Tensor:
    """Un-padded share of every level, counted on the first column and row.

    paddings: L tensors (B, h, w) bool
    returns:  (B, L, 2) (x, y)
    """
    ratios = []
    for padding in paddings:
        height, width = padding.shape[1:]
        x = (~padding[:, 0, :]).sum(1).float() / width
        y = (~padding[:, :, 0]).sum(1).float() / height
        ratios.append(torch.stack([x, y], -1))
    return torch.stack(ratios, 1)


def encoder_references(shapes: Sequence[tuple[int, int]], ratios: Tensor) -> Tensor:
    """The centre of every token, in units of every level's padded size.

    shapes:  [(h, w), ...]
    ratios:  (B, L, 2) valid ratios
    returns: (B, S, L, 2)
    """
    centres = []
    for level, (height, width) in enumerate(shapes):
        y = torch.arange(height, device=ratios.device) + 0.5
        x = torch.arange(width, device=ratios.device) + 0.5
        own = ratios[:, level, None]  # (B, 1, 2)
        ys = (y[None] / (own[..., 1] * height))[:, :, None].expand(-1, -1, width)
        xs = (x[None] / (own[..., 0] * width))[:, None, :].expand(-1, height, -1)
        centres.append(torch.stack([xs, ys], -1).flatten(1, 2))
    return torch.cat(centres, 1)[:, :, None] * ratios[:, None]


def _starts_at_zero(name: str) -> bool:
    return "sampling_offsets" in name or "attention_weights" in name


class Transformer(nn.Module):
    """Encoder over the pyramid's tokens; decoder over object queries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(NUM_LEVELS, config.width))
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.query_embed = nn.Embedding(config.num_queries, 2 * config.width)
        self.reference_points = nn.Linear(config.width, 2)
        # As the original initialises every matrix of the transformer.
        for module in (self.encoder, self.decoder):
            for name, parameter in module.named_parameters():
                if parameter.dim() > 1 and not _starts_at_zero(name):
                    nn.init.xavier_uniform_(parameter)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def encode(self, pyramid: Pyramid) -> Tensor:
        """The pyramid's tokens after the encoder: (B, S, C)."""
        references = encoder_references(pyramid.shapes, pyramid.valid_ratios)
        tokens = pyramid.tokens
        for layer in self.encoder:
            tokens = layer(tokens, pyramid.positions, references, pyramid.padding, pyramid.shapes)
        return tokens

    def decode(
        self, memory: Tensor, pyramid: Pyramid, bbox_embed: nn.ModuleList
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine every object query through the decoder layers.

        memory:     (B, S, C) encoder output
        bbox_embed: one box head per decoder layer
        returns:    states (D, B, Q, C), boxes (D, B, Q, 4) cxcywh, and references (D, B, Q, 2):
                    the point that entered each layer
        """
        batch = len(memory)
        positions, states = self.query_embed.weight.chunk(2, dim=1)
        reference = self.reference_points(positions).sigmoid().expand(batch, -1, -1)
        positions, states = positions.expand(batch, -1, -1), states.expand(batch, -1, -1)
        all_states, all_boxes, all_references = [], [], []
        for layer, head in zip(self.decoder, bbox_embed, strict=True):
            ratios = pyramid.valid_ratios[:, None]  # (B, 1, L, 2)
            if reference.shape[-1] == 4:
                ratios = torch.cat([ratios, ratios], -1)
            states = layer(
                states, positions, reference[:, :, None] * ratios, memory, pyramid.padding,
                pyramid.shapes,
            )  # fmt: skip
            delta = head(states)
            anchor = inverse_sigmoid(reference)
            if reference.shape[-1] == 2:
                anchor = F.pad(anchor, (0, 2))
            boxes = (delta + anchor).sigmoid()
            all_states.append(states)
            all_boxes.append(boxes)
            all_references.append(reference[..., :2])
            # Each layer corrects the one before without sending gradients into it.
            reference = boxes.detach()
        return torch.stack(all_states), torch.stack(all_boxes), torch.stack(all_references)
