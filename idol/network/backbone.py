"""The backbone that a configuration names."""

from __future__ import annotations

from idol.config import BackboneConfig
from idol.network.layers import Backbone
from idol.network.library import LibraryBackbone
from idol.network.resnet import ResNet, TinyBackbone
from idol.network.swin import Swin

_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# What None means in BackboneConfig.frozen_stages for a ResNet (detectron2's FREEZE_AT).
_FROZEN_STAGES = 2


def build(config: BackboneConfig, checkpoint_activations: bool = False) -> Backbone:
    """The backbone a configuration names.

    checkpoint_activations: ModelConfig.checkpoint_activations
    Raises:
        ValueError: a backbone of the transformers library cannot serve; the message names the rule.
        ImportError: that library is missing.
    """
    backbone: Backbone
    if config.name == "tiny":
        backbone = TinyBackbone(config.tiny_channels)
    elif config.name == "transformers":
        backbone = LibraryBackbone(config.source)
    elif config.name == "swin":
        backbone = Swin(
            embed=config.swin_embed,
            depths=config.swin_depths,
            heads=config.swin_heads,
            window=config.swin_window,
            drop_path=config.swin_drop_path,
            frozen_stages=config.frozen_stages or 0,
        )
    else:
        frozen = _FROZEN_STAGES if config.frozen_stages is None else config.frozen_stages
        backbone = ResNet(_BLOCKS[config.name], frozen)
    backbone.checkpoint_activations = checkpoint_activations
    return backbone
