"""IDOL, online video instance segmentation, in plain PyTorch."""

from idol import config, evaluation, presets, segmenter, structures, tracker
from idol.checkpoint import from_pretrained, load
from idol.config import Config
from idol.model import IDOL
from idol.segmenter import OnlineSegmenter

__all__ = [
    "IDOL",
    "Config",
    "OnlineSegmenter",
    "config",
    "evaluation",
    "from_pretrained",
    "load",
    "presets",
    "segmenter",
    "structures",
    "tracker",
]
