"""Backbones: ResNet-50/101 with frozen batch norm as released, and a small trainable network.

Plain PyTorch on purpose: a library's ResNet would need its batch norms swapped and its keys renamed
for what is eighty lines here. Swin is in swin.py; every other backbone comes through library.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idol.network.layers import Backbone


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics and affine parameters (specification 1.2)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(channels))
        # Identity at the start, as the released code has it.
        self.register_buffer("running_var", torch.ones(channels) - self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) → the same shape."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class ConvNorm(nn.Conv2d):
    """Convolution without bias followed by a frozen batch norm, under one name."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
    ) -> None:
        padding = kernel // 2
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm: FrozenBatchNorm | nn.Identity = FrozenBatchNorm(outputs, eps)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) → (B, outputs, H/stride, W/stride)."""
        out: Tensor = self.norm(super().forward(x))
        return out

    def fold(self) -> None:
        """Make the norm part of the convolution, which thereby gets a bias."""
        if isinstance(norm := self.norm, nn.Identity):
            return
        with torch.no_grad():
            # float64: one rounding, of the result.
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            shift = norm.bias.double() - norm.running_mean.double() * scale
            weight = self.weight.double() * scale[:, None, None, None]
            self.weight = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)
            self.bias = nn.Parameter(shift.to(self.weight.dtype), requires_grad=False)
        self.norm = nn.Identity()


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a residual; the stride sits in the 3×3, or in the first 1×1."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, stride: int, stride_in_1x1: bool = False
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(inputs, middle, 1, first)
        self.conv2 = ConvNorm(middle, middle, 3, second)
        self.conv3 = ConvNorm(middle, outputs, 1)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) → (B, outputs, H/stride, W/stride)."""
        residual = x if self.shortcut is None else self.shortcut(x)
        out = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(out + residual)


def _refuse_other_form(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before loading into a ResNet: weights with norms and weights without do not mix."""
    assert isinstance(module, ResNet)
    norms = f"{prefix}stem.conv1.norm.weight" in state
    if module.folded and norms:
        raise ValueError(
            "this backbone is folded: its frozen norms are part of its convolutions, but the "
            "weights have norms. Load the weights into a fresh network and fold that."
        )
    if not module.folded and f"{prefix}stem.conv1.bias" in state and not norms:
        raise ValueError(
            "these weights come from a folded backbone, which has no norms any more. Use the "
            "checkpoint they were folded from."
        )


class ResNet(Backbone):
    """ResNet-50/101 with detectron2's key names, so that released weights need a prefix only."""

    def __init__(
        self, blocks: Sequence[int], frozen_stages: int, stride_in_1x1: bool = False
    ) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv1": ConvNorm(3, 64, 7, 2)})
        inputs = 64
        for stage, count in enumerate(blocks):
            middle, outputs = 64 * 2**stage, 256 * 2**stage
            stride = 2 if stage > 0 else 1
            layers = [Bottleneck(inputs, middle, outputs, stride, stride_in_1x1)]
            layers += [Bottleneck(outputs, middle, outputs, 1) for _ in range(count - 1)]
            self.add_module(f"res{stage + 2}", nn.Sequential(*layers))
            inputs = outputs
        self.channels = (512, 1024, 2048)
        for name in ("stem", "res2", "res3", "res4", "res5")[:frozen_stages]:
            self.get_submodule(name).requires_grad_(False)
        self.register_load_state_dict_pre_hook(_refuse_other_form)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) → features of strides 8, 16, 32 with 512, 1024, 2048 channels."""
        x = F.max_pool2d(F.relu(self.stem["conv1"](images)), 3, 2, 1)
        features = []
        for name in ("res2", "res3", "res4", "res5"):
            for block in self.get_submodule(name).children():
                x = self.run(block, x)
            features.append(x)
        return features[1:]

    def fold(self) -> bool:
        """Make every frozen norm part of its convolution, in place, for inference.

        A folded backbone neither trains nor takes a checkpoint's weights. Outputs move by about
        1e-6 of their size. Raises: ValueError: it is in training mode.
        """
        if self.training:
            raise ValueError("only a backbone in eval mode can be folded; call .eval() first")
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        changed, self.folded = not self.folded, True
        return changed

    def train(self, mode: bool = True) -> ResNet:
        """As nn.Module.train. Raises: ValueError: a folded backbone is asked to train."""
        if mode and self.folded:
            raise ValueError(
                "a folded backbone has no norms any more and cannot train. Load the checkpoint "
                "again and train that."
            )
        super().train(mode)
        return self


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with GroupNorm and a residual, for the tiny backbone."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) → (B, outputs, H/stride, W/stride)."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class TinyBackbone(Backbone):
    """Five strided stages of one basic block each; learns from scratch in minutes."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0], 5, 2, 2, bias=False), nn.GroupNorm(8, channels[0]), nn.ReLU()
        )
        self.stages = nn.ModuleList(BasicBlock(a, b, 2) for a, b in pairwise(channels))
        self.channels = tuple(channels[2:])

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) → features of strides 8, 16, 32."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = self.run(stage, x)
            features.append(x)
        return features[1:]
