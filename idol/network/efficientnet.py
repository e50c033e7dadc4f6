"""EfficientNet-Lite0 (Tan and Le 2019; without squeeze-and-excitation), an ImageNet backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idol.network.layers import Backbone
from idol.network.resnet import ConvNorm

_STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPSILON = 1e-3
_OUTPUTS = (4, 10, 15)  # the last blocks of strides 8, 16, 32
# The published weights want (x - 0.5) / 0.5 of pixels in 0..1; these are idol.images' numbers.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> ConvNorm:
    made = ConvNorm(inputs, outputs, kernel, stride, groups, eps=_EPSILON)
    if stride == 2:
        made.padding = (0, 0)  # of TensorFlow's kind, see _padded
    return made


def _padded(x: Tensor, convolution: ConvNorm) -> Tensor:
    """Zeros as TensorFlow's "SAME" puts them around maps of even sides: one more at the end."""
    if convolution.stride[0] == 1:
        return x
    least = (convolution.kernel_size[0] - 2) // 2
    return F.pad(x, (least, least + 1, least, least + 1))


class InvertedBottleneck(nn.Module):
    """1×1 that expands, k×k for each channel, 1×1 that projects; a residual where sizes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expand = _convolution(inputs, middle, 1) if expansion > 1 else None
        self.depthwise = _convolution(middle, middle, kernel, stride, middle)
        self.project = _convolution(middle, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) → (B, outputs, H/stride, W/stride)."""
        out = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(_padded(out, self.depthwise))))
        made: Tensor = out + x if self.residual else out
        return made


class EfficientNetLite0(Backbone):
    """3.4 million parameters; batch norms keep the statistics of ImageNet."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.channels = (40, 112, 320)
        self.first = _convolution(3, 32, 3, 2)
        blocks, inputs = [], 32
        for count, kernel, stride, expansion, outputs in _STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                blocks.append(InvertedBottleneck(inputs, outputs, kernel, step, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        scale = torch.tensor(_STD) / 0.5
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        shift = (torch.tensor(_MEAN) - 0.5) / 0.5
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W), sides divisible by 32 → maps of strides 8, 16, 32."""
        x = F.relu6(self.first(_padded(images * self.scale + self.shift, self.first)))
        features = []
        for number, block in enumerate(self.blocks):
            x = self.run(block, x)
            if number in _OUTPUTS:
                features.append(x)
        return features
