"""Small layers shared by the transformer and the heads."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn

from ops.linear import linear


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products on x's device have the precision of their factors."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int = 3) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs) → (..., outputs)."""
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            x = linear(layer, x, relu=index < last)
        return x
