"""Masks from logits on an NVIDIA GPU, as bits: what leaves it is an eighth of a byte a pixel.

The kernels (`csrc/masks.cu`) are compiled at first use like those of deformable attention. Where
they cannot be had, `missing` says why, and the caller takes the way of the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops import nvrtc

NAME = "masks"
SOURCE = Path(__file__).parent / "csrc" / "masks.cu"
KERNELS = ("pack", "shared_pixels", "resize")

WORD = 32
_WARPS = 8  # of a block
_MOST = 2**16 - 1  # of a grid's second and third side


@functools.cache
def missing(device: int) -> str | None:
    """Why these kernels cannot run on that CUDA device, in one line; None when they can."""
    reason = nvrtc.missing()
    if reason is None:
        try:
            _kernels(device)
        except nvrtc.CannotCompile as error:
            reason = str(error).splitlines()[0]
    return reason


@functools.cache
def _kernels(device: int) -> dict[str, Any]:
    loaded = nvrtc.load(NAME, SOURCE.read_text(), device, KERNELS)
    return dict(zip(KERNELS, loaded, strict=True))


def shared_pixels(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Positive pixels that every two masks of one image share; the diagonal has the areas.

    logits:  (n, h, w) float32, masks of one or several images, image after image
    counts:  masks of each image, n together
    returns: (n, most) int32, most = max(counts); column k is the k-th mask of the row's own image,
             and what is beyond its last one is not defined
    """
    masks, pixels = len(logits), logits[0].numel() if len(logits) else 0
    most = max(counts, default=0)
    out = torch.empty((masks, most), dtype=torch.int32, device=logits.device)
    if out.numel() == 0:
        return out
    _check(logits, masks)
    words = -(-pixels // WORD)
    bits = torch.empty((masks, words), dtype=torch.int32, device=logits.device)
    ends = np.cumsum(counts)
    bounds = torch.from_numpy(np.repeat([ends - counts, ends], counts, axis=1).astype(np.int32))
    bounds = bounds.to(logits.device, non_blocking=True)
    _launch("pack", (-(-words // _WARPS), masks, 1), logits, [logits, bits], [masks, pixels, words])
    tensors = [bits, bounds[0], bounds[1], out]
    _launch("shared_pixels", (-(-most // _WARPS), masks, 1), logits, tensors, [words, most])
    return out


def resize(logits: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Masks at another size, by bilinear interpolation of their logits, as bits down the columns.

    logits:  (n, h, w) float32
    rows:    for each of H rows of the result: (H,) int32, the upper row it reads; (H,) float32, the
             share of the one below
    columns: the same for its W columns
    returns: (n, W, ⌈H / 32⌉) int32; bit i of word j of column x is pixel (32 j + i, x), those
             beyond H are 0
    """
    masks, h, w = logits.shape
    height, width = len(rows[0]), len(columns[0])
    words = -(-height // WORD)
    out = torch.empty((masks, width, words), dtype=torch.int32, device=logits.device)
    if out.numel():
        _check(logits, max(masks, words))
        for low, share in (rows, columns):
            if low.dtype != torch.int32 or share.dtype != torch.float32:
                got = f"{low.dtype} and {share.dtype}"
                raise TypeError(f"rows and columns must be int32 and float32, got {got}")
        tensors = [logits, *rows, *columns, out]
        grid = (-(-width // _WARPS), words, masks)
        _launch("resize", grid, logits, tensors, [h, w, height, width, words])
    return out


def _check(logits: Tensor, most: int) -> None:
    if logits.dtype != torch.float32 or not logits.is_contiguous():
        raise TypeError(
            f"logits must be contiguous and float32, got {logits.dtype} of strides "
            f"{logits.stride()}; convert them with .float().contiguous()."
        )
    if most > _MOST:
        raise ValueError(f"at most {_MOST} masks at once, got {most}; give them in parts.")


def _launch(
    name: str,
    grid: tuple[int, int, int],
    logits: Tensor,
    tensors: Sequence[Tensor],
    numbers: Sequence[int],
) -> None:
    device = logits.device.index
    pointers = [tensor.data_ptr() for tensor in tensors]
    sizes = [np.int32(number) for number in numbers]
    nvrtc.launch(_kernels(device)[name], device, grid, _WARPS * 32, *pointers, *sizes)
