"""Weights on disk to networks and back: our checkpoints, released files, hub, export."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.weights.checkpoint import build, export_released, from_pretrained, load, save
    from idol.weights.imagenet import load_imagenet
    from idol.weights.released import from_released
    from idol.weights.report import CheckpointError, LoadReport

__all__ = [
    "CheckpointError",
    "LoadReport",
    "build",
    "export_released",
    "from_pretrained",
    "from_released",
    "load",
    "load_imagenet",
    "save",
]

__getattr__, __dir__ = attach(__name__)
