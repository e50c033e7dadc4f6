"""Layers that several parts of the network share, and the base class of backbones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from idol.config import BackboneConfig, Config
from ops.linear import linear


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products on x's device have the precision of their factors."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def run(block: nn.Module, *args: Any, again: bool) -> Tensor:
    """block(*args); if `again`, its activations are computed a second time for its gradients."""
    # Checkpoints restore the random state, so that dropout drops the same units both times.
    again = again and torch.is_grad_enabled()
    out: Tensor = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
    return out


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int = 3) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs) → (..., outputs)."""
        last = self.layers[-1]
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            x = linear(layer, x, relu=layer is not last)
        return x


class Network(nn.Module):
    """What can be trained, saved and loaded: a backbone and what follows, as configured."""

    config: Config
    backbone: Backbone
    folded: bool = False
    """Whether `fold` changed it for inference: it can neither train nor be saved."""


class Backbone(nn.Module):
    """Images (B, 3, H, W) to three feature maps (B, C, h, w) of strides 8, 16 and 32."""

    channels: tuple[int, ...]
    """Channels of the three maps."""
    checkpoint_activations: bool = False
    """Whether training keeps only the input of each block and computes the rest twice."""
    folded: bool = False
    """Whether `fold` changed the weights, which are then for inference only."""

    def fold(self) -> bool:
        """Merge layers that are constant at inference, in place; True where anything changed.

        Outputs stay equal up to rounding. Raises: ValueError: the backbone is in training mode.
        """
        return False

    def portable(self, config: BackboneConfig) -> BackboneConfig:
        """The configuration it was built from, without references to other files."""
        return config

    def run(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        """block(x, *args), with its activations checkpointed where that is asked for and helps."""
        wanted = self.checkpoint_activations and self.training
        helps = wanted and (x.requires_grad or any(p.requires_grad for p in block.parameters()))
        return run(block, x, *args, again=helps)
