"""SeqFormer (ECCV 2022): an instance query per video, which gathers from a box query per frame.

"specification" here is the one of SeqFormer; what it shares with IDOL is IDOL's code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idol.clips.network import ClipLayers, ClipNetwork, Frames
from idol.config import Config, ModelConfig
from idol.network import transformer
from idol.network.deformable import DeformableNetwork
from idol.network.geometry import Geometry, Shapes, level_shapes, of_padding
from idol.network.layers import without_autocast
from idol.network.mask_head import dynamic_masks
from idol.network.transformer import (
    Transformer,
    inverse_sigmoid,
    refined,
    scaled_references,
)
from ops.linear import linear

FEEDFORWARD = tuple[nn.Linear, nn.Linear, nn.LayerNorm]


@dataclass(frozen=True, slots=True, eq=False)
class PyramidFrames(Frames):
    """Encoded frames.

    memory:   (N, S, C) encoder output
    features: (N, 8, H/8, W/8) F_mask
    padding:  (N, S) bool, True at padded tokens
    ratios:   (N, L, 2) valid ratios of the first frame of each frame's clip
    """

    memory: Tensor
    features: Tensor
    padding: Tensor
    ratios: Tensor


class DecoderLayer(transformer.DecoderLayer):
    """One sampling per frame serves two streams: box queries there, instance queries over frames.

    Names with _box are those of the box queries' stream (specification 1.3).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = config.width
        self.output_proj_box = nn.Linear(width, width)
        self.norm1_box = nn.LayerNorm(width)
        self.self_attn_box = nn.MultiheadAttention(
            width, config.num_heads, dropout=config.dropout, batch_first=True
        )
        self.norm2_box = nn.LayerNorm(width)
        self.linear1_box = nn.Linear(width, config.feedforward)
        self.linear2_box = nn.Linear(config.feedforward, width)
        self.norm3_box = nn.LayerNorm(width)
        self.time_attention_weights = nn.Linear(width, 1)

    def over_frames(
        self,
        states: Tensor,
        boxes: Tensor,
        positions: Tensor,
        references: Tensor,
        frames: PyramidFrames,
        shapes: Shapes,
    ) -> tuple[Tensor, Tensor]:
        """One round for B clips of T frames; returns both states as given, boxes with T frames.

        states:     (B, Q, C) instance queries
        boxes:      (B, T or 1, Q, C) box queries; 1: the same in all frames
        positions:  (Q, C)
        references: (B, T, Q, L, 2 or 4) in units of each padded level
        """
        clips, length = references.shape[:2]
        query = states + positions
        attended = self.self_attn(query, query, states, need_weights=False)[0]
        states = self.norm2(states + self.dropout(attended))

        flat = boxes.flatten(0, 1)
        query = flat + positions
        attended = self.self_attn_box(query, query, flat, need_weights=False)[0]
        flat = self.norm2_box(flat + self.dropout(attended))
        flat = flat.view_as(boxes).expand(-1, length, -1, -1).flatten(0, 1)

        sampled = self.cross_attn.sample(
            flat + positions, references.flatten(0, 1), frames.memory, shapes, frames.padding
        )
        flat = self.norm1_box(flat + self.dropout(linear(self.output_proj_box, sampled)))
        flat = self._feedforward(flat, (self.linear1_box, self.linear2_box, self.norm3_box))
        boxes = flat.view(clips, length, *flat.shape[1:])

        # Frames that do not show the instance count too: only their weights tell.
        share = self.time_attention_weights(boxes).softmax(1)  # (B, T, Q, 1)
        gathered = linear(self.cross_attn.output_proj, sampled).view_as(boxes)
        states = self.norm1(states + self.dropout((share * gathered).sum(1)))
        return self._feedforward(states, (self.linear1, self.linear2, self.norm3)), boxes

    def _feedforward(self, x: Tensor, layers: FEEDFORWARD) -> Tensor:
        first, second, norm = layers
        hidden = linear(second, self.dropout(linear(first, x, relu=True)))
        out: Tensor = norm(x + self.dropout(hidden))
        return out


class ClipTransformer(Transformer):
    """IDOL's encoder, and a decoder over instance and box queries."""

    decoder_layer = DecoderLayer

    def decode_clips(
        self, frames: PyramidFrames, length: int, shapes: Shapes, heads: nn.ModuleList
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine the queries of clips of `length` frames through D layers, each with its box head.

        returns: states (D, B, Q, C), boxes (D, B, T, Q, 4) cxcywh, and references (D, B, T, Q, 2),
                 the point that entered each layer
        """
        positions, states = self.query_embed.weight.chunk(2, dim=1)
        clips = len(frames) // length
        states = states.expand(clips, -1, -1)
        boxes = states[:, None]
        reference = self.first_references(frames.memory).expand(clips, length, -1, -1)
        ratios = frames.ratios.view(clips, length, 1, *frames.ratios.shape[1:])
        outputs = []
        for layer, head in zip(self.decoder, heads, strict=True):
            assert isinstance(layer, DecoderLayer)
            scaled = scaled_references(reference, ratios)
            states, boxes = layer.over_frames(states, boxes, positions, scaled, frames, shapes)
            found = refined(head, boxes, reference)
            outputs.append((states, found, reference[..., :2]))
            reference = found.detach()
        instances, refinements, points = (torch.stack(x) for x in zip(*outputs, strict=True))
        return instances, refinements, points


class SeqFormer(ClipNetwork, DeformableNetwork):
    """Sigmoid scores of K classes, boxes and masks at H/4 of every instance in every frame.

    H and W are multiples of 32.
    """

    transformer: ClipTransformer
    divisor = 32

    def __init__(self, config: Config) -> None:
        DeformableNetwork.__init__(self, config, ClipTransformer)

    def frames(self, images: Tensor, padding: Tensor, length: int) -> PyramidFrames:
        """As ClipNetwork.frames: the encoder looks at every frame by itself.

        images: (N, 3, H, W), padding: (N, H, W)
        """
        geometry: Geometry = of_padding(padding, self.config.model.width, frames=length)
        tokens = self.tokens(images, geometry.shapes)
        memory = self.transformer.encode(tokens, geometry)
        assert geometry.padding is not None
        return PyramidFrames(
            sizes=geometry.sizes,
            memory=memory,
            features=self.features_of_masks(memory, geometry.shapes),
            padding=geometry.padding,
            ratios=geometry.valid_ratios,
        )

    def layers(self, frames: Frames, length: int) -> ClipLayers:
        """As ClipNetwork.layers."""
        assert isinstance(frames, PyramidFrames)
        clips = len(frames) // length
        height, width = frames.features.shape[2:]
        states, boxes, points = self.transformer.decode_clips(
            frames, length, level_shapes(8 * height, 8 * width), self.bbox_embed
        )
        with without_autocast(states):
            logits = self.class_logits(states)
        # Relative coordinates are pixels of one frame, in training the clip's last.
        scale = frames.sizes.view(clips, length, 2)[:, -1 if self.training else 0].flip(-1)
        features = frames.features.view(clips, length, *frames.features.shape[1:])

        def mask_logits(layer: int, clip: int, rows: Tensor) -> Tensor:
            with without_autocast(features):
                parameters = self.controller(states[layer, clip, rows])
                # The round trip clamps to [1e-5, 1 - 1e-5], as released.
                centres = inverse_sigmoid(points[layer, clip][:, rows]).sigmoid() * scale[clip]
                unit = self.config.model.mask_coordinate_scale
                masks = [
                    dynamic_masks(features[clip, t], parameters, centres[t], unit)
                    for t in range(length)
                ]
            return torch.stack(masks, 1)

        return ClipLayers(logits, boxes, length, mask_logits)
