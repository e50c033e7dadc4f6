"""The backbone that a configuration names."""

from __future__ import annotations

from idol.config import BackboneConfig
from idol.network.efficientnet import EfficientNetLite0
from idol.network.layers import Backbone
from idol.network.library import LibraryBackbone
from idol.network.resnet import ResNet, TinyBackbone
from idol.network.swin import Swin

_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# What None means in BackboneConfig.frozen_stages for a ResNet (detectron2's FREEZE_AT).
_FROZEN_STAGES = 2


def build(config: BackboneConfig, checkpoint_activations: bool = False) -> Backbone:
    """The backbone a configuration names. Raises: as LibraryBackbone, where that is asked for."""
    backbone: Backbone
    if config.name == "tiny":
        backbone = TinyBackbone(config.tiny_channels)
    elif config.name == "efficientnet_lite0":
        backbone = EfficientNetLite0()
    elif config.name == "transformers":
        backbone = LibraryBackbone(config.source)
    elif config.name == "swin":
        backbone = Swin(config)
    else:
        frozen = _FROZEN_STAGES if config.frozen_stages is None else config.frozen_stages
        backbone = ResNet(_BLOCKS[config.name], frozen, config.stride_in_1x1)
    backbone.checkpoint_activations = checkpoint_activations
    return backbone
