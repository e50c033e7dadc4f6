"""File to state dict and back: our checkpoints, released files, hub, export."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.weights.checkpoint import export_released, from_pretrained, from_released, load, save
    from idol.weights.imagenet import load_imagenet
    from idol.weights.report import CheckpointError, LoadReport

__all__ = [
    "CheckpointError",
    "LoadReport",
    "export_released",
    "from_pretrained",
    "from_released",
    "load",
    "load_imagenet",
    "save",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "CheckpointError": "idol.weights.report",
        "LoadReport": "idol.weights.report",
        "export_released": "idol.weights.checkpoint",
        "from_pretrained": "idol.weights.checkpoint",
        "from_released": "idol.weights.checkpoint",
        "load": "idol.weights.checkpoint",
        "load_imagenet": "idol.weights.imagenet",
        "save": "idol.weights.checkpoint",
    },
)
