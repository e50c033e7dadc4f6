"""IDOL, online video instance segmentation, in plain PyTorch.

Public names are imported on first use, so that scoring results needs no PyTorch.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol import (
        analysis,
        clips,
        config,
        detection,
        evaluation,
        images,
        learning,
        masks,
        network,
        presets,
        segmenter,
        streams,
        structures,
        tracker,
        weights,
        ytvis,
    )
    from idol.config import Config
    from idol.instances import Instances
    from idol.network.model import IDOL
    from idol.segmenter import OnlineSegmenter, track
    from idol.streams import StreamResult, Streams
    from idol.weights.checkpoint import build, from_pretrained, load
    from idol.weights.zoo import models

__all__ = [
    "IDOL",
    "Config",
    "Instances",
    "OnlineSegmenter",
    "StreamResult",
    "Streams",
    "analysis",
    "build",
    "clips",
    "config",
    "detection",
    "evaluation",
    "from_pretrained",
    "images",
    "learning",
    "load",
    "masks",
    "models",
    "network",
    "presets",
    "segmenter",
    "streams",
    "structures",
    "track",
    "tracker",
    "weights",
    "ytvis",
]

__getattr__, __dir__ = attach(__name__)
