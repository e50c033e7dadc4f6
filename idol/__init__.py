"""IDOL, online video instance segmentation, in plain PyTorch."""

from idol import config, evaluation, presets, structures, tracker
from idol.checkpoint import from_pretrained, load
from idol.config import Config
from idol.model import IDOL

__all__ = [
    "IDOL",
    "Config",
    "config",
    "evaluation",
    "from_pretrained",
    "load",
    "presets",
    "structures",
    "tracker",
]
