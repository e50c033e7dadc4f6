"""Swin Transformer as the released code uses it: windowed attention, four output norms.

Plain PyTorch on purpose, though transformers (5.23) has a Swin: it skips no path on the MLP branch
while training, shrinks the window and drops the shift on small feature maps, makes its attention
mask in every forward, and renamed its parameters between versions. Here the names are those of the
official detection code and of the released files, so that their weights need a prefix only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idol.config import BackboneConfig
from idol.network.layers import Backbone

# Added to the attention logit of two tokens that the shift only brought together, as released.
_BLOCKED = -100.0
_MLP_RATIO = 4
_PATCH = 4


def _drop_path(branch: Tensor, probability: float, training: bool) -> Tensor:
    """Zero a whole residual branch (B, H, W, C) of random images, and scale up the others."""
    if not training or probability == 0.0:
        return branch
    keep = branch.new_empty(len(branch), 1, 1, 1).bernoulli_(1.0 - probability)
    return branch * (keep / (1.0 - probability))


def _windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C), H and W multiples of side → (B, n, side * side, C), windows row by row."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).reshape(batch, -1, side * side, channels)


def _unwindows(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of _windows."""
    batch, _, _, channels = x.shape
    x = x.view(batch, height // side, width // side, side, side, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def _shift_mask(height: int, width: int, side: int, device: torch.device) -> Tensor:
    """(n, side², side²) to add to attention logits after a shift by half a window.

    0 within a region, −100 between regions that the cyclic shift put into one window.
    """

    def bands(length: int) -> Tensor:
        index = torch.arange(length, device=device)
        return (index >= length - side).long() + (index >= length - side // 2).long()

    regions = 3 * bands(height)[:, None] + bands(width)[None, :]
    tokens = _windows(regions[None, :, :, None], side)[0, :, :, 0]
    return (tokens[:, None, :] != tokens[:, :, None]) * _BLOCKED


class PatchEmbed(nn.Module):
    """4x4 patches to tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, _PATCH, _PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W) → (B, ceil(H/4), ceil(W/4), C); zeros fill incomplete patches."""
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % _PATCH, 0, -height % _PATCH))
        out: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return out


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        rows, columns = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
        down = rows[:, None] - rows[None, :] + side - 1
        right = columns[:, None] - columns[None, :] + side - 1
        # Persistent, because the released files hold it.
        self.register_buffer("relative_position_index", down * (2 * side - 1) + right)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (B, n, S, C) windows of S tokens, mask: (n, S, S) added to the logits → as x."""
        batch, count, tokens, channels = x.shape
        qkv = self.qkv(x).view(batch, count, tokens, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind()  # (B, n, heads, S, d)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(tokens, tokens, self.heads).permute(2, 0, 1).to(query.dtype)
        # The fused kernels take four dimensions. The windows join the batch where all share one
        # bias, and the heads where each has its own: so a bias is never repeated.
        first = 0 if mask is None else 1
        if mask is not None:
            bias = (bias + mask[:, None].to(bias.dtype)).flatten(0, 1)
        query, key, value = (t.flatten(first, first + 1) for t in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        out = out.reshape(batch, count, self.heads, tokens, -1).transpose(2, 3).flatten(3)
        projected: Tensor = self.proj(out)
        return projected


class MLP(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, _MLP_RATIO * channels)
        self.fc2 = nn.Linear(_MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., C) → the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Window attention and MLP, each with a residual; every second block shifts its windows."""

    def __init__(
        self, channels: int, heads: int, side: int, shifted: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.side, self.shift = side, side // 2 if shifted else 0
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, side)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, H, W, C) → the same shape; mask: of _shift_mask, for the padded H and W."""
        x = x + _drop_path(self._attend(self.norm1(x), mask), self.drop_path, self.training)
        return x + _drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        # Zeros after the norm, without a mask: padding takes part in the attention, as released.
        x = F.pad(x, (0, 0, 0, -width % self.side, 0, -height % self.side))
        padded = x.shape[1], x.shape[2]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = self.attn(_windows(x, self.side), mask if self.shift else None)
        x = _unwindows(windows, self.side, *padded)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """2x2 tokens to one of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C) → (B, ceil(H/2), ceil(W/2), 2C); zeros fill odd sides."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        rows = torch.cat([x[:, 0::2], x[:, 1::2]], -1)
        out: Tensor = self.reduction(self.norm(torch.cat([rows[:, :, 0::2], rows[:, :, 1::2]], -1)))
        return out


class Stage(nn.Module):
    """The blocks of one resolution, and the step to the next."""

    def __init__(
        self, channels: int, heads: int, side: int, drop_paths: Sequence[float], last: bool
    ) -> None:
        super().__init__()
        self.side = side
        self.blocks = nn.ModuleList(
            Block(channels, heads, side, index % 2 == 1, drop)
            for index, drop in enumerate(drop_paths)
        )
        self.downsample = None if last else PatchMerging(channels)
        self._last_mask: tuple[tuple[int, int, torch.device], Tensor] | None = None

    def mask(self, x: Tensor) -> Tensor:
        """The mask of the shifted windows for tokens x (B, H, W, C), kept for the next call."""
        height, width = (-(-side // self.side) * self.side for side in x.shape[1:3])
        if torch.compiler.is_compiling():
            # Constants of the graph; a cache would be a side effect and a reason to recompile.
            return _shift_mask(height, width, self.side, x.device)
        key = (height, width, x.device)
        if self._last_mask is None or self._last_mask[0] != key:
            # One shape: many would gather gigabytes. No inference tensor: training may come.
            with torch.inference_mode(False):
                self._last_mask = key, _shift_mask(height, width, self.side, x.device)
        return self._last_mask[1]


class Swin(Backbone):
    """Swin Transformer with the key names of the released files (specification 1.2)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        depths = config.swin_depths
        widths = [config.swin_embed * 2**stage for stage in range(len(depths))]
        last = max(sum(depths) - 1, 1)
        rates = iter([config.swin_drop_path * block / last for block in range(sum(depths))])
        self.patch_embed = PatchEmbed(config.swin_embed)
        self.layers = nn.ModuleList(
            Stage(width, count, config.swin_window, list(islice(rates, depth)), width == widths[-1])
            for width, count, depth in zip(widths, config.swin_heads, depths, strict=True)
        )
        for stage, width in enumerate(widths):
            self.add_module(f"norm{stage}", nn.LayerNorm(width))
        # In the released files, but the stride-4 output feeds nothing: a parameter that waits for
        # a gradient would stall DistributedDataParallel.
        self.get_submodule("norm0").requires_grad_(False)
        self.channels = tuple(widths[1:])
        self._frozen = [self.patch_embed, *self.layers][: config.frozen_stages or 0]
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Swin:
        """As nn.Module.train; frozen stages stay in eval mode, so that they skip no path."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def stages(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) → tokens (B, h, w, C) of strides 4, 8, 16, 32, not normalised."""
        x = self.patch_embed(images)
        outputs = []
        for stage in self.layers:
            assert isinstance(stage, Stage)
            mask = stage.mask(x)
            for block in stage.blocks:
                x = self.run(block, x, mask)
            outputs.append(x)
            x = x if stage.downsample is None else stage.downsample(x)
        return outputs

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) → normalised features (B, C, h, w) of strides 8, 16, 32."""
        norms = [self.get_submodule(f"norm{stage}") for stage in (1, 2, 3)]
        tokens = self.stages(images)[1:]
        return [f(x).permute(0, 3, 1, 2).contiguous() for f, x in zip(norms, tokens, strict=True)]
