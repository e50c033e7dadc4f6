"""Images to Outputs: the network, its backbones, and its fast form for inference."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.network.backbone import build
    from idol.network.fast import FastNetwork
    from idol.network.layers import Backbone
    from idol.network.model import IDOL

__all__ = ["Backbone", "FastNetwork", "IDOL", "build"]

__getattr__, __dir__ = attach(__name__)
