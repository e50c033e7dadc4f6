"""The network that a configuration asks for, of single frames or of clips, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from torch import Tensor

from idol import presets
from idol.config import Config
from idol.network.layers import Network
from idol.network.model import IDOL
from idol.structures import ClipBatch, PairBatch
from idol.weights import checkpoint


def make(config: Config) -> Network:
    """A network with random weights."""
    if config.model.method == "idol":
        return IDOL(config)
    from idol.clips.weights import make as make_clips

    return make_clips(config)


def loss(config: Config) -> Callable[..., Any]:
    """As of idol.learning.Trainer."""
    if config.model.method == "idol":
        from idol.learning.pair_loss import PairLoss

        return PairLoss
    from idol.clips.training import ClipLoss

    return ClipLoss


def batch(config: Config, clips: ClipBatch) -> PairBatch | ClipBatch:
    """What that loss takes. Raises: ValueError: clips are of another length than the network's."""
    return clips.pairs() if takes_pairs(config) else clips


def takes_pairs(config: Config) -> bool:
    """Whether the loss takes pairs of frames; else clips of pairs.clip frames."""
    return config.model.method == "idol" and config.losses.contrast == "reference"


def load(source: str | PathLike[str], preset: str | None = None) -> Network:
    """A trained network of either kind, in eval mode, as of idol.load and idol.clips.load."""
    if preset is not None:
        config = presets.by_name(preset)
    else:
        config = checkpoint.read_file(checkpoint.locate(source))[0] or Config()
    if config.model.method == "idol":
        return checkpoint.load(source, preset=preset)
    from idol.clips import weights

    return weights.load(source, preset=preset)


def read(source: str, config: Config) -> tuple[Config | None, dict[str, Tensor]]:
    """Configuration and tensors of a file of such a network, as of idol.weights.checkpoint.read."""
    if config.model.method == "idol":
        return checkpoint.read(source)
    from idol.clips import weights

    return weights.read(source)
