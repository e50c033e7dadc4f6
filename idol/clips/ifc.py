"""IFC (NeurIPS 2021): frames of a clip communicate through a few memory tokens each.

"specification" here is the one of IFC. There are no boxes, and no position in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idol.clips.network import ClipLayers, ClipNetwork, Frames
from idol.config import Config, ModelConfig
from idol.network import backbone
from idol.network.geometry import sine_encoding, unpadded_sizes
from idol.network.layers import MLP, run, without_autocast
from ops.linear import full_precision, linear


@dataclass(frozen=True, slots=True, eq=False)
class CoarseFrames(Frames):
    """Frames before they communicate.

    tokens:    (N, C, h, w) of stride 32; positions: the same shape
    padding:   (N, h, w) bool, True where padded
    middle:    (N, C, ...) of stride 16, for the masks; fine: of stride 8
    """

    tokens: Tensor
    positions: Tensor
    padding: Tensor
    middle: Tensor
    fine: Tensor


class AttentionLayer(nn.Module):
    """Self-attention and a feed-forward block, each followed by a LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.self_attn = nn.MultiheadAttention(
            width, config.num_heads, dropout=dropout, batch_first=True
        )
        self.linear1 = nn.Linear(width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, positions: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """x: (N, S, C) to the same shape; positions: (N, S, C); padding: (N, S) bool, keys that do
        not count."""
        query = x if positions is None else x + positions
        attended = self.self_attn(query, query, x, key_padding_mask=padding, need_weights=False)[0]
        return self.feedforward(self.norm1(x + self.dropout(attended)), self.norm2)

    def feedforward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """The feed-forward block with its residual and this norm: (..., C) to the same shape."""
        hidden = linear(self.linear2, self.dropout(linear(self.linear1, x, relu=True)))
        out: Tensor = norm(x + self.dropout(hidden))
        return out


class DecoderLayer(AttentionLayer):
    """Self-attention among the object queries, then from each to the tokens of the whole clip."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.multihead_attn = nn.MultiheadAttention(
            config.width, config.num_heads, dropout=config.dropout, batch_first=True
        )
        self.norm3 = nn.LayerNorm(config.width)

    def over_clip(
        self, states: Tensor, queries: Tensor, memory: Tensor, positions: Tensor, padding: Tensor
    ) -> Tensor:
        """states (B, Q, C) to the same shape; queries: (Q, C) their positions.

        memory, positions: (B, S, C) tokens of the clip; padding: (B, S) bool
        """
        query = states + queries
        attended = self.self_attn(query, query, states, need_weights=False)[0]
        states = self.norm1(states + self.dropout(attended))
        attended = self.multihead_attn(
            states + queries,
            memory + positions,
            memory,
            key_padding_mask=padding,
            need_weights=False,
        )[0]
        states = self.norm2(states + self.dropout(attended))
        return self.feedforward(states, self.norm3)


class Transformer(nn.Module):
    """Frames that exchange memory tokens, and object queries over the clip (1.4, 1.5)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.checkpoint_activations = config.checkpoint_activations
        width, tokens = config.width, config.memory_tokens
        self.memory_bus = nn.Parameter(torch.empty(tokens, width))
        self.memory_pos = nn.Parameter(torch.empty(tokens, width))
        blocks = range(config.encoder_layers)
        self.enc_layers = nn.ModuleList(AttentionLayer(config) for _ in blocks)
        self.bus_layers = nn.ModuleList(AttentionLayer(config) for _ in blocks)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for parameter in (self.memory_bus, self.memory_pos):
            nn.init.normal_(parameter, std=math.sqrt(2 / tokens))

    def encode(
        self, tokens: Tensor, positions: Tensor, padding: Tensor, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Alternate attention within each frame and, memory token by memory token, across frames.

        tokens, positions: (N, S, C) of clips of `length` frames; padding: (N, S) bool
        returns: tokens, positions and padding with the M memory tokens appended: (N, S + M, C)
        """
        frames, pixels, width = tokens.shape
        buses = len(self.memory_bus)
        x = torch.cat([tokens, self.memory_bus.expand(frames, -1, -1)], 1)
        positions = torch.cat([positions, self.memory_pos.expand(frames, -1, -1)], 1)
        padding = F.pad(padding, (0, buses), value=False)
        again = self.checkpoint_activations and self.training
        for within, across in zip(self.enc_layers, self.bus_layers, strict=True):
            x = run(within, x, positions, padding, again=again)
            # (B, T, M, C): one sequence over the frames for every memory token of a clip.
            bus = x[:, pixels:].reshape(-1, length, buses, width).transpose(1, 2)
            bus = run(across, bus.flatten(0, 1), again=again).view(-1, buses, length, width)
            x = torch.cat([x[:, :pixels], bus.transpose(1, 2).flatten(0, 1)], 1)
        return x, positions, padding

    def decode(
        self, x: Tensor, positions: Tensor, padding: Tensor, queries: Tensor, length: int
    ) -> Tensor:
        """States (D, B, Q, C) of the object queries (Q, C), after the norm that all layers share.

        x, positions, padding: as encode returns them
        """
        pixels = x.shape[1] - len(self.memory_bus)

        def of_clip(rows: Tensor) -> Tensor:
            """(N, S + M, ...) to (B, T S + T M, ...): all frame tokens, then all memory tokens."""
            clips = rows.view(-1, length, *rows.shape[1:])
            return torch.cat(
                [clips[:, :, :pixels].flatten(1, 2), clips[:, :, pixels:].flatten(1, 2)], 1
            )

        memory, positions, padding = of_clip(x), of_clip(positions), of_clip(padding)
        states = queries.new_zeros(len(memory), *queries.shape)
        found = []
        for layer in self.decoder:
            assert isinstance(layer, DecoderLayer)
            states = layer.over_clip(states, queries, memory, positions, padding)
            found.append(self.norm(states))
        return torch.stack(found)


class MaskHead(nn.Module):
    """Frames at stride 8, non-negative, and the weights that make an instance's mask of them."""

    def __init__(self, channels: tuple[int, int], width: int) -> None:
        super().__init__()
        self.lay1, self.lay2, self.lay3 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        groups = min(32, width // 2)
        self.gn1, self.gn2, self.gn3 = (nn.GroupNorm(groups, width) for _ in range(3))
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)
        fine, middle = channels
        self.adapter1, self.adapter2 = nn.Conv2d(middle, width, 1), nn.Conv2d(fine, width, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.convert_to_weight = MLP(width, width, width)

    def forward(self, x: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """x (N, C, h, w) of stride 32, adapted maps of strides 16 and 8 → (N, C, ...) of stride 8.

        middle, fine: the maps of strides 16 and 8, (N, C, ...) each
        """
        x = self.gn1(self.lay1(x))
        x = self.gn2(self.lay2(middle + F.interpolate(x, size=middle.shape[-2:])))
        x = F.relu(self.gn3(self.lay3(fine + F.interpolate(x, size=fine.shape[-2:]))))
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class IFC(ClipNetwork):
    """Softmax scores of K classes and "no object", masks at H/8 of every instance in every frame.

    H and W are any: its own inference pads nothing.
    """

    divisor = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.config = config
        width = model.width
        self.backbone = backbone.build(model.backbone, model.checkpoint_activations)
        fine, middle, coarse = self.backbone.channels
        self.input_proj = nn.Conv2d(coarse, width, 1)
        self.transformer = Transformer(model)
        self.query_embed = nn.Embedding(model.num_queries, width)
        self.class_embed = MLP(width, width, model.num_classes + 1, 2)
        self.mask_head = MaskHead((fine, middle), width)

    def frames(self, images: Tensor, padding: Tensor, length: int) -> CoarseFrames:
        """As ClipNetwork.frames: what frames are before they communicate.

        images: (N, 3, H, W), padding: (N, H, W)
        """
        fine, middle, coarse = self.backbone(images.to(self.input_proj.weight.dtype))
        tokens = self.input_proj(coarse)
        sizes = unpadded_sizes(padding)
        # A partly padded cell is no padding: ceil(size / 32) rows and columns are of the picture.
        inside = -(-sizes // 32)
        height, width = tokens.shape[2:]
        rows = torch.arange(height, device=images.device) >= inside[:, :1]
        columns = torch.arange(width, device=images.device) >= inside[:, 1:]
        small = rows[:, :, None] | columns[:, None, :]
        return CoarseFrames(
            sizes=sizes,
            tokens=tokens,
            positions=sine_encoding(small, tokens.shape[1], offset=0.0).to(tokens.dtype),
            padding=small,
            middle=self.mask_head.adapter1(middle),
            fine=self.mask_head.adapter2(fine),
        )

    def layers(self, frames: Frames, length: int) -> ClipLayers:
        """As ClipNetwork.layers."""
        assert isinstance(frames, CoarseFrames)
        maps = frames.tokens
        tokens, positions = (x.flatten(2).mT for x in (maps, frames.positions))
        encoded = self.transformer.encode(tokens, positions, frames.padding.flatten(1), length)
        states = self.transformer.decode(*encoded, self.query_embed.weight, length)
        pixels = maps.shape[2] * maps.shape[3]
        coarse = encoded[0][:, :pixels].mT.reshape(maps.shape)
        features = self.mask_head(coarse, frames.middle, frames.fine)
        features = full_precision(features).view(-1, length, *features.shape[1:])
        with without_autocast(states):
            logits = full_precision(self.class_embed(states))

        def mask_logits(layer: int, clip: int, rows: Tensor) -> Tensor:
            with without_autocast(features):
                weights = full_precision(
                    self.mask_head.convert_to_weight(states[layer, clip, rows])
                )
                return torch.einsum("nc,tchw->nthw", weights, features[clip])

        return ClipLayers(logits, None, length, mask_logits)
