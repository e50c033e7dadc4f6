"""IDOL, online video instance segmentation, in plain PyTorch."""

from idol import config, presets, structures
from idol.checkpoint import load
from idol.config import Config
from idol.model import IDOL

__all__ = ["IDOL", "Config", "config", "load", "presets", "structures"]
