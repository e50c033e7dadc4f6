"""Padding, positions and reference points of every token: all that the sizes of images decide."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

REMEMBERED = 12
"""Geometries that a process remembers; one of a 720p image takes 20 MB."""

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Padding, positions and reference points of the S tokens of a batch of B images.

    The first dimension is 1 instead of B where all images have one size: it broadcasts.

    sizes:        (B, 2)            int64, un-padded (height, width)
    padding:      (B or 1, S)       bool, True where padded; None where no token is known to be
    positions:    (B or 1, S, C)    float32 sine encoding (specification 1.3)
    valid_ratios: (B or 1, L, 2)    float32, un-padded share of each level, (x, y)
    references:   (B or 1, S, L, 2) float32, every token's centre in units of each padded level
    shapes:       ((h, w), ...) of the L levels
    """

    sizes: Tensor
    padding: Tensor | None
    positions: Tensor
    valid_ratios: Tensor
    references: Tensor
    shapes: Shapes


def level_shapes(height: int, width: int) -> Shapes:
    """(h, w) of the levels of an input whose sides are multiples of 32: strides 8, 16, 32, 64."""
    strides = [(height // s, width // s) for s in (8, 16, 32)]
    # The last level is a 3x3 convolution of stride 2 and padding 1, which rounds up.
    return (*strides, ((strides[-1][0] + 1) // 2, (strides[-1][1] + 1) // 2))


def unpadded_sizes(padding: Tensor) -> Tensor:
    """(B, 2) int64 (height, width), read off the first column and row of padding (B, H, W)."""
    return torch.stack([(~padding[:, :, 0]).sum(1), (~padding[:, 0, :]).sum(1)], -1)


def of_padding(
    padding: Tensor, channels: int, sizes: Tensor | None = None, *, frames: int = 0
) -> Geometry:
    """Geometry as the released code computes it, from the padding of every pixel.

    padding: (B, H, W) bool, True where padded; H and W multiples of 32
    sizes:   (B, 2) un-padded (height, width); read off the padding's first column and row if None
    frames:  0: the rules of IDOL. Else those of SeqFormer, for clips of so many images: the valid
             ratios of a clip are those of its first image, and the last level's mask comes from the
             image's instead of the stride-8 one
    """
    shapes = level_shapes(*padding.shape[1:])
    if sizes is None:
        sizes = unpadded_sizes(padding)
    full = padding[:, None].float()
    levels = [F.interpolate(full, size=shape) for shape in shapes[:-1]]
    # The released code makes the last level's mask from the stride-8 one, not the image's.
    levels.append(F.interpolate(full if frames else levels[0], size=shapes[-1]))
    paddings = [level[:, 0].bool() for level in levels]
    ratios = valid_ratios(paddings)
    if frames:
        ratios = ratios[::frames].repeat_interleave(frames, 0)
    encodings = [sine_encoding(p, channels).flatten(2).transpose(1, 2) for p in paddings]
    return Geometry(
        sizes=sizes,
        padding=torch.cat([p.flatten(1) for p in paddings], 1),
        positions=torch.cat(encodings, 1),
        valid_ratios=ratios,
        references=encoder_references(shapes, ratios),
        shapes=shapes,
    )


def of_sizes(
    padded: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    channels: int,
    device: torch.device | str = "cpu",
) -> Geometry:
    """The same bits for images padded at the bottom and right; remembered per size.

    padded: (H, W) of the batch, multiples of 32
    sizes:  B pairs (height, width) of the un-padded images
    Raises: ValueError: a size is outside the padded input.
    """
    plain = [(int(height), int(width)) for height, width in sizes]
    for index, (height, width) in enumerate(plain):
        if not (0 < height <= padded[0] and 0 < width <= padded[1]):
            raise ValueError(
                f"sizes must be (height, width) within the padded input {tuple(padded)}, but image "
                f"{index} of {len(plain)} has {(height, width)}. Are they those of the frames "
                "before resizing?"
            )
    if not plain:
        raise ValueError("sizes must have one (height, width) per image, got none")
    device, padded = torch.device(device), (padded[0], padded[1])
    # A compiled graph holds the geometry itself.
    of_size: Callable[..., Geometry] = _compute if torch.compiler.is_compiling() else _remembered
    if len(set(plain)) == 1:
        one = of_size(padded, plain[0], channels, device)
        return dataclasses.replace(one, sizes=one.sizes.expand(len(plain), 2))
    each = [of_size(padded, size, channels, device) for size in plain]
    none = torch.zeros(each[0].positions.shape[:2], dtype=torch.bool, device=device)
    names = ("sizes", "positions", "valid_ratios", "references")
    joined: dict[str, Any] = {name: torch.cat([getattr(g, name) for g in each]) for name in names}
    joined["padding"] = torch.cat([none if g.padding is None else g.padding for g in each])
    return Geometry(**joined, shapes=each[0].shapes)


@functools.lru_cache(maxsize=REMEMBERED)
def _remembered(
    padded: tuple[int, int], size: tuple[int, int], channels: int, device: torch.device
) -> Geometry:
    # Training may use what inference computed, and the reverse.
    with torch.inference_mode(False), torch.no_grad():
        found = _compute(padded, size, channels, device)
    if device.type == "cuda":
        # Another stream may read it next, without waiting for the one that wrote it.
        torch.cuda.current_stream(device).synchronize()
    return found


def _compute(
    padded: tuple[int, int], size: tuple[int, int], channels: int, device: torch.device
) -> Geometry:
    padding = torch.ones(1, *padded, dtype=torch.bool, device=device)
    padding[:, : size[0], : size[1]] = False
    geometry = of_padding(padding, channels)
    # Where nothing is padded, no layer needs to set padded tokens to zero.
    return dataclasses.replace(geometry, padding=None) if padded == size else geometry


def sine_encoding(padding: Tensor, channels: int, offset: float = 0.5) -> Tensor:
    """Sine and cosine of the un-padded, normalised row and column: (B, C, H, W) float32.

    padding:  (B, H, W) bool, True where padded
    channels: C, half for the row and half for the column; divisible by 4

    offset:   0.5: rows are counted from 0.5, as released; 0: from 1, as in DETR and IFC

    Counts are divided by that of the last row, so a partly padded map spans the full period
    (specification 1.3).
    """
    valid = (~padding).float()
    half = channels // 2
    index = torch.arange(half, device=padding.device)
    period = 10000.0 ** (2 * (index // 2) / half)
    axes = []
    for dim in (1, 2):
        count = valid.cumsum(dim)
        last = count.narrow(dim, count.shape[dim] - 1, 1)
        angle = (count - offset) / (last + 1e-6) * (2 * math.pi)
        angle = angle[..., None] / period  # (B, H, W, C/2)
        axes.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(3))
    return torch.cat(axes, dim=-1).permute(0, 3, 1, 2)


def valid_ratios(paddings: Sequence[Tensor]) -> Tensor:
    """Un-padded share (x, y) of every level, counted on the first column and row: (B, L, 2).

    paddings: L tensors (B, h, w) bool
    """
    ratios = []
    for padding in paddings:
        height, width = padding.shape[1:]
        x = (~padding[:, 0, :]).sum(1).float() / width
        y = (~padding[:, :, 0]).sum(1).float() / height
        ratios.append(torch.stack([x, y], -1))
    return torch.stack(ratios, 1)


def encoder_references(shapes: Sequence[tuple[int, int]], ratios: Tensor) -> Tensor:
    """The centre of every token, in units of every level's padded size: (B, S, L, 2).

    ratios: (B, L, 2) valid ratios
    """
    centres = []
    for level, (height, width) in enumerate(shapes):
        y = torch.arange(height, device=ratios.device) + 0.5
        x = torch.arange(width, device=ratios.device) + 0.5
        own = ratios[:, level, None]  # (B, 1, 2)
        ys = (y[None] / (own[..., 1] * height))[:, :, None].expand(-1, -1, width)
        xs = (x[None] / (own[..., 0] * width))[:, None, :].expand(-1, height, -1)
        centres.append(torch.stack([xs, ys], -1).flatten(1, 2))
    return torch.cat(centres, 1)[:, :, None] * ratios[:, None]
