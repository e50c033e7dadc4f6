"""Mask features and the dynamic mask head (specification 1.8, 1.9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.linear import full_precision


def num_dynamic_parameters(channels: int) -> int:
    """Parameters of one instance's three 1×1 convolutions: 169 for 8 channels."""
    return (channels + 2) * channels + channels * channels + channels + 2 * channels + 1


class MaskBranch(nn.Module):
    """Fuses encoder levels of strides 8, 16, 32 into F_mask. Names follow the released keys."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.lay3, self.lay4, self.dcn = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.lay1 = nn.Conv2d(width, width // 4, 3, padding=1)
        self.lay2 = nn.Conv2d(width // 4, channels, 3, padding=1)
        for layer in (self.lay3, self.lay4, self.dcn, self.lay1, self.lay2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor]) -> Tensor:
        """levels: three (B, C, h, w), strides 8, 16, 32 → F_mask (B, channels, H/8, W/8)."""
        high, middle, low = levels
        x = F.relu(self.lay3(low))
        x = F.relu(self.lay4(middle + F.interpolate(x, size=middle.shape[-2:])))
        x = F.relu(self.dcn(high + F.interpolate(x, size=high.shape[-2:])))
        return F.relu(self.lay2(F.relu(self.lay1(x))))


def aligned_double(x: Tensor) -> Tensor:
    """x (N, h, w) doubled to (N, 2h, 2w): cells keep their top-left corners (specification 1.9)."""
    height, width = x.shape[-2:]
    x = F.pad(x[:, None], (0, 1, 0, 1), mode="replicate")
    x = F.interpolate(x, (2 * height + 1, 2 * width + 1), mode="bilinear", align_corners=True)
    x = F.pad(x, (1, 0, 1, 0), mode="replicate")
    return x[:, 0, : 2 * height, : 2 * width]


def dynamic_masks(features: Tensor, parameters: Tensor, centres: Tensor, scale: float) -> Tensor:
    """Mask logits of any set of object queries, each with its own small network.

    features:   (8, h, w) F_mask at stride 8, where all queries look at one image; or (n, 8, h, w)
    parameters: (n, 169) weights w0 (8×10), w1 (8×8), w2 (1×8), then biases
    centres:    (n, 2) xy of the relative coordinates' origin, pixels of the padded input
    scale:      relative coordinates are pixels / scale (released: 1)
    returns:    (n, 2h, 2w) logits, stride 4

    Computed in at least float32 where autocast is off: coordinates run to more than a thousand
    pixels, of which 16 bits would keep every fourth or eighth.
    """
    features, parameters = full_precision(features), full_precision(parameters)
    channels, height, width = features.shape[-3:]
    count = len(parameters)
    if count == 0:
        return features.new_zeros(0, 2 * height, 2 * width) + parameters.sum()
    sizes = [(channels + 2) * channels, channels * channels, channels, channels, channels, 1]
    w0, w1, w2, b0, b1, b2 = torch.split(parameters, sizes, dim=1)
    w0 = w0.view(count, channels, channels + 2)

    # Layer 0 is linear: its share of the features is one matrix product, and its share of the
    # coordinates is a row plus a column, so the (n, 10, h, w) input is never built.
    mixed = w0[:, :, 2:] @ features.flatten(-2)
    x = mixed.view(count, channels, height, width)
    columns = torch.arange(width, device=x.device, dtype=x.dtype) * 8 + 4
    rows = torch.arange(height, device=x.device, dtype=x.dtype) * 8 + 4
    dx = (centres[:, :1] - columns) / scale  # (n, w)
    dy = (centres[:, 1:] - rows) / scale  # (n, h)
    across = w0[:, :, 0, None] * dx[:, None] + b0[..., None]  # (n, 8, w)
    down = w0[:, :, 1, None] * dy[:, None]  # (n, 8, h)
    x = F.relu(x + across[:, :, None, :] + down[:, :, :, None], inplace=True).flatten(2)
    x = torch.baddbmm(b1[..., None], w1.view(count, channels, channels), x)
    x = torch.baddbmm(b2[..., None], w2.view(count, 1, channels), F.relu(x, inplace=True))
    return aligned_double(x.view(count, height, width))
