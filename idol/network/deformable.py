"""What the networks on Deformable DETR share: backbone, pyramid, heads and mask features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from idol.config import Config, ModelConfig
from idol.network import backbone, heads
from idol.network.geometry import Shapes
from idol.network.layers import Network
from idol.network.mask_head import MaskBranch, num_dynamic_parameters
from idol.network.transformer import NUM_LEVELS, Transformer
from ops.linear import full_precision


class DeformableNetwork(Network):
    """Images to a pyramid of tokens, around a transformer, with heads on its decoder's states."""

    transformer: Transformer

    def __init__(self, config: Config, transformer: Callable[[ModelConfig], Transformer]) -> None:
        super().__init__()
        model = config.model
        self.config = config
        width = model.width
        self.backbone = backbone.build(model.backbone, model.checkpoint_activations)
        inputs = [*self.backbone.channels, self.backbone.channels[-1]]
        self.input_proj = nn.ModuleList(
            heads.projection(channels, width, 3 if level == NUM_LEVELS - 1 else 1)
            for level, channels in enumerate(inputs)
        )
        self.transformer = transformer(model)
        self.class_embed = heads.class_heads(model)
        self.bbox_embed = heads.box_heads(model)
        self.mask_branch = MaskBranch(width, model.mask_channels)
        self.controller = heads.mask_controller(width, num_dynamic_parameters(model.mask_channels))

    def class_logits(self, states: Tensor) -> Tensor:
        """Decoder states (D, ..., C) to class logits (D, ..., K), at least float32."""
        pairs = zip(self.class_embed, states, strict=True)
        return torch.stack([full_precision(head(state)) for head, state in pairs])

    def features_of_masks(self, memory: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """F_mask (B, 8, H/8, W/8) from the encoder's tokens (B, S, C), its three finest levels."""
        levels = torch.split(memory, [h * w for h, w in shapes], dim=1)
        fine = zip(levels[:3], shapes[:3], strict=True)
        features: Tensor = self.mask_branch([x.mT.reshape(len(x), -1, *s) for x, s in fine])
        return features

    def tokens(self, images: Tensor, shapes: Shapes) -> Tensor:
        """The features of all levels at the transformer's width: (B, S, C)."""
        features = self.backbone(images.to(self.transformer.level_embed.dtype))
        maps = [f(x) for f, x in zip(self.input_proj, [*features, features[-1]], strict=True)]
        found = tuple((x.shape[2], x.shape[3]) for x in maps)
        if found != shapes:
            raise ValueError(
                f"the backbone gave levels of {found} where strides 8, 16, 32 and 64 make {shapes}."
            )
        return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
