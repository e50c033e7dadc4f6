"""Deformable encoder and decoder with iterative box refinement (specification 1.4 – 1.6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idol.config import ModelConfig
from idol.network.geometry import Geometry
from idol.network.layers import run, without_autocast
from ops import MSDeformAttn, spread
from ops.linear import full_precision, linear

NUM_LEVELS = 4
"""L: strides 8, 16, 32 of the backbone and one more at 64."""


def inverse_sigmoid(x: Tensor) -> Tensor:
    """log(x / (1 − x)) with x and 1 − x floored at 1e-5 (specification 1.6)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5))


def scaled_references(reference: Tensor, ratios: Tensor) -> Tensor:
    """References in units of each padded level: (..., Q, L, 2 or 4).

    reference: (..., Q, 2 or 4) points or boxes in units of the un-padded image
    ratios:    (..., 1, L, 2) valid ratios
    """
    scale = ratios if reference.shape[-1] == 2 else torch.cat([ratios, ratios], -1)
    return reference[..., None, :] * scale


def refined(head: nn.Module, states: Tensor, reference: Tensor) -> Tensor:
    """Boxes (..., Q, 4) cxcywh of a box head on states (..., Q, C), around the reference.

    reference: (..., Q, 2 or 4) what entered the decoder layer
    """
    with without_autocast(states):
        delta = full_precision(head(states))
    anchor = inverse_sigmoid(reference)
    if reference.shape[-1] == 2:
        anchor = F.pad(anchor, (0, 2))
    return (delta + anchor).sigmoid()


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward block, each followed by a LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(config.width, config.num_heads, config.num_points, NUM_LEVELS)
        self.norm1 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Tensor, positions: Tensor, anchors: Tensor, geometry: Geometry
    ) -> Tensor:
        """One round of self-attention over the pyramid: tokens (B, S, C) to the same shape.

        positions: (B or 1, S, C)
        anchors:   every token's centre, (B or 1, S, L, 2) or as repeated by ops.spread
        """
        query, shapes = tokens + positions, geometry.shapes
        attended = self.self_attn(query, anchors, tokens, shapes, geometry.padding)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = linear(self.linear2, self.dropout(linear(self.linear1, tokens, relu=True)))
        out: Tensor = self.norm2(tokens + self.dropout(hidden))
        return out


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention, feed-forward (norms 2, 1, 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads, dropout = config.width, config.num_heads, config.dropout
        self.cross_attn = MSDeformAttn(width, heads, config.num_points, NUM_LEVELS)
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        references: Tensor,
        tokens: Tensor,
        geometry: Geometry,
    ) -> Tensor:
        """One round of attention among the queries, then from each query to the image.

        states, positions: (B, Q, C), like the result
        references:        (B, Q, L, 2 or 4) points or boxes in units of each padded level
        tokens:            (B, S, C) encoder output
        """
        query = states + positions
        attended = self.self_attn(query, query, states, need_weights=False)[0]
        states = self.norm2(states + self.dropout(attended))
        query, shapes = states + positions, geometry.shapes
        attended = self.cross_attn(query, references, tokens, shapes, geometry.padding)
        states = self.norm1(states + self.dropout(attended))
        hidden = linear(self.linear2, self.dropout(linear(self.linear1, states, relu=True)))
        out: Tensor = self.norm3(states + self.dropout(hidden))
        return out


class Transformer(nn.Module):
    """Encoder over the pyramid's tokens; decoder over object queries."""

    decoder_layer: Callable[[ModelConfig], DecoderLayer] = DecoderLayer
    """What the decoder is made of."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.checkpoint_activations = config.checkpoint_activations
        self.heads, self.points = config.num_heads, config.num_points
        self.level_embed = nn.Parameter(torch.randn(NUM_LEVELS, config.width))
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(
            self.decoder_layer(config) for _ in range(config.decoder_layers)
        )
        self.query_embed = nn.Embedding(config.num_queries, 2 * config.width)
        self.reference_points = nn.Linear(config.width, 2)
        # Every matrix but those that MSDeformAttn starts at zero (specification 1.5).
        for module in (self.encoder, self.decoder):
            for name, parameter in module.named_parameters():
                zero = name.split(".")[-2] in ("sampling_offsets", "attention_weights")
                if parameter.dim() > 1 and not zero:
                    nn.init.xavier_uniform_(parameter)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def encode(self, tokens: Tensor, geometry: Geometry) -> Tensor:
        """The encoder's output (B, S, C) for tokens (B, S, C), the features level after level."""
        # In the parameters' precision: under autocast that of the residual stream, float32.
        dtype = self.level_embed.dtype
        levels = torch.split(
            geometry.positions.to(dtype), [h * w for h, w in geometry.shapes], dim=1
        )
        positions = torch.cat([p + e for p, e in zip(levels, self.level_embed, strict=True)], 1)
        tokens = tokens.to(dtype)
        anchors = spread(geometry.references, self.heads, self.points)
        again = self.checkpoint_activations and self.training
        for layer in self.encoder:
            tokens = run(layer, tokens, positions, anchors, geometry, again=again)
        return tokens

    def decode(
        self, memory: Tensor, geometry: Geometry, bbox_embed: nn.ModuleList
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine every object query through the D decoder layers, each with its box head.

        memory:  (B, S, C) encoder output
        returns: states (D, B, Q, C), boxes (D, B, Q, 4) cxcywh, and references (D, B, Q, 2), the
                 point that entered each layer; boxes and references at least float32
        """
        # Contiguous: torch multiplies a strided view by a copy of the matrix for every query.
        positions, states = (x.contiguous() for x in self.query_embed.weight.chunk(2, dim=1))
        reference = self.first_references(memory)
        reference, positions, states = (
            x.expand(len(memory), -1, -1) for x in (reference, positions, states)
        )
        ratios = geometry.valid_ratios[:, None]  # (B or 1, 1, L, 2)
        outputs = []
        again = self.checkpoint_activations and self.training
        for layer, head in zip(self.decoder, bbox_embed, strict=True):
            scaled = scaled_references(reference, ratios)
            states = run(layer, states, positions, scaled, memory, geometry, again=again)
            boxes = refined(head, states, reference)
            outputs.append((states, boxes, reference[..., :2]))
            # Each layer corrects the one before without sending gradients into it.
            reference = boxes.detach()
        states, boxes, references = (torch.stack(parts) for parts in zip(*outputs, strict=True))
        return states, boxes, references

    def first_references(self, memory: Tensor) -> Tensor:
        """Points (Q, 2) in [0, 1] where the object queries start, at least float32.

        memory: encoder output, which says whether autocast is on
        """
        positions = self.query_embed.weight[:, : self.reference_points.in_features]
        with without_autocast(memory):
            return full_precision(self.reference_points(positions)).sigmoid()
