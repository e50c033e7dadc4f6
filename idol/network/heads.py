"""Heads on decoder states and the projections before the transformer, as every network has them."""

from __future__ import annotations

import copy
import math

from torch import nn

from idol.config import ModelConfig
from idol.network.layers import MLP


def projection(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Backbone channels to the transformer's width; a 3x3 kernel also halves the resolution."""
    convolution = nn.Conv2d(channels, width, kernel, 2 if kernel == 3 else 1, kernel // 2)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.GroupNorm(min(32, width // 2), width))


def classifier(width: int, classes: int) -> nn.Linear:
    """A linear class head that starts with every class at a score of 0.01."""
    head = nn.Linear(width, classes)
    nn.init.constant_(head.bias, -math.log(99.0))
    return head


def class_head(config: ModelConfig) -> nn.Linear | MLP:
    """Class logits of one decoder layer; scores start at 0.01 in both kinds."""
    if config.class_head == "linear":
        return classifier(config.width, config.num_classes)
    head = MLP(config.width, config.width, config.num_classes)
    head.layers[-1] = classifier(config.width, config.num_classes)
    return head


def box_head(width: int) -> MLP:
    """Box deltas that start at zero."""
    head = MLP(width, width, 4)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


def mask_controller(width: int, parameters: int) -> MLP:
    """Decoder states to dynamic mask parameters."""
    head = MLP(width, width, parameters)
    for layer in head.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return head


def class_heads(config: ModelConfig) -> nn.ModuleList:
    """One class head per decoder layer, which start as copies of one, as released."""
    head = class_head(config)
    return nn.ModuleList(copy.deepcopy(head) for _ in range(config.decoder_layers))


def box_heads(config: ModelConfig) -> nn.ModuleList:
    """The same of boxes: the first layer starts from boxes of a fixed size, the others from no
    change."""
    head = box_head(config.width)
    found = [copy.deepcopy(head) for _ in range(config.decoder_layers)]
    last = found[0].layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias[2:], -2.0)
    return nn.ModuleList(found)
