"""Mask logits to masks at the original size, pixel for pixel as the released code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from idol.arrays import Ints
from idol.masks import rle

STRIDE = 4
"""The network predicts mask logits at 1/4 of the padded input."""

# cv2.resize and torch interpolate add the same four products in another order. Above this
# fraction of the largest logit their difference (a few units of 2^-24) cannot change a sign.
_ROUNDING = 2.0**-20


Pair = tuple[int, int]
Method = Literal["released", "smooth"]
"""See DetectConfig.mask_resize."""


def resize(
    logits: Tensor,
    input_size: tuple[int, int],
    size: tuple[int, int],
    method: Method = "released",
) -> Tensor:
    """Mask logits to masks at the original size, pixel for pixel as released (specification 4.4).

    The released code upsamples by 4 (bilinear), applies the sigmoid, crops the padding, resizes
    to the original size (nearest) and asks for more than 0.5; the order below does the cheap
    things first and gives the same pixels.

    logits:     (n, h/4, w/4) over the padded input
    input_size: (height, width) of the network input without padding
    size:       (height, width) of the original frame
    method:     smooth interpolates to the original size in one step instead
    returns:    (n, height, width) bool on the CPU
    """
    import cv2

    masks = np.empty((len(logits), *size), np.uint8)
    for i, columns in enumerate(_resized_columns(logits, input_size, size, method)):
        masks[i] = cv2.transpose(columns)
    return torch.from_numpy(masks.view(np.bool_))


def resize_and_encode(
    logits: Tensor,
    input_size: tuple[int, int],
    size: tuple[int, int],
    method: Method = "released",
) -> list[bytes]:
    """rle.encode_masks(resize(...)), without a stack of masks at original size in between.

    logits:     (n, h/4, w/4) over the padded input
    input_size: (height, width) of the network input without padding
    size:       (height, width) of the original frame
    method:     as in resize
    returns:    n compressed COCO counts
    """
    return rle.encode_columns(_resized_columns(logits, input_size, size, method))


def _resized_columns(
    logits: Tensor, input_size: tuple[int, int], size: tuple[int, int], method: Method
) -> Iterator[npt.NDArray[np.uint8]]:
    """As resize, one mask after the other as (W, H), in one array that each time is overwritten."""
    if logits.ndim != 3:
        raise ValueError(f"logits must have shape (n, h/4, w/4), got {tuple(logits.shape)}")
    height, width = logits.shape[1] * STRIDE, logits.shape[2] * STRIDE
    if not (0 < input_size[0] <= height and 0 < input_size[1] <= width) or min(size) < 1:
        raise ValueError(
            f"input_size must be positive and at most the padded input {(height, width)} and size "
            f"positive, got input_size {input_size}, size {size}. Both are (height, width)."
        )
    maps = logits.detach().float().cpu().numpy()
    draw = (_smooth if method == "smooth" else _released)(maps.shape[1:], input_size, size)
    mask = np.empty((size[1], size[0]), np.uint8)
    for logit in maps:
        mask.fill(0)
        positive = logit > 0
        ys, xs = np.flatnonzero(positive.any(axis=1)), np.flatnonzero(positive.any(axis=0))
        if len(ys):
            draw(mask, logit, (ys[0], ys[-1]), (xs[0], xs[-1]))
        yield mask


Draw = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.float32], Pair, Pair], None]
"""Draws a map, whose positive logits lie in rows and columns from first to last, into a (W, H)
mask. An interpolated value is positive only if a cell is that it is read from."""


def _released(shape: tuple[int, ...], input_size: Pair, size: Pair) -> Draw:
    """As the released code: by 4, then the nearest; shape: (h/4, w/4)."""
    rows, columns = (nearest(i, o) for i, o in zip(input_size, size, strict=True))

    def draw(mask: npt.NDArray[np.uint8], logit: npt.NDArray[np.float32], y: Pair, x: Pair) -> None:
        # With one cell around the positive ones the whole mask is in, and at the cut every logit is
        # at most 0, so that the clamped border is background as it should be.
        top, left = max(y[0] - 1, 0), max(x[0] - 1, 0)
        part = _upsample_positive(logit[top : y[1] + 2, left : x[1] + 2])
        top, left = top * STRIDE, left * STRIDE
        r0, r1 = np.searchsorted(rows, (top, top + part.shape[0]))
        c0, c1 = np.searchsorted(columns, (left, left + part.shape[1]))
        # Pick rows first: they are contiguous in part, so the transposed gather reads less.
        picked = part[rows[r0:r1] - top]
        mask[c0:c1, r0:r1] = picked.T[columns[c0:c1] - left]

    return draw


def _smooth(shape: tuple[int, ...], input_size: Pair, size: Pair) -> Draw:
    """Interpolated to the original size in one step; shape: (h/4, w/4)."""
    rows, columns = (
        _bilinear(length, i, o) for length, i, o in zip(shape, input_size, size, strict=True)
    )

    def draw(mask: npt.NDArray[np.uint8], logit: npt.NDArray[np.float32], y: Pair, x: Pair) -> None:
        # Bilinear interpolation is separable: one small matrix for rows, one for columns. Not by
        # numpy, whose BLAS keeps its threads running for a tenth of a second after each product:
        # with torch's own on the same cores the network takes five times as long.
        of_rows, of_columns = rows.part(*y), columns.part(*x)
        part = torch.from_numpy(logit[of_rows.cells, of_columns.cells])
        made = torch.mm(torch.mm(of_columns.weights, part.T), of_rows.weights.T) > 0
        mask[of_columns.pixels, of_rows.pixels] = made.numpy()

    return draw


@dataclass(frozen=True, slots=True)
class _Axis:
    """How `pixels` are read from `cells` of a map of stride 4.

    weights: (pixels, cells) float32, of which a row has two
    low:     (pixels,) the first cell of each that counts
    """

    weights: Tensor
    low: Ints
    pixels: slice
    cells: slice

    def part(self, first: int, last: int) -> _Axis:
        """What the cells from first to last, both included, have a share in."""
        start, stop = np.searchsorted(self.low, (first - 1, last + 1)).tolist()
        cells = slice(max(first - 1, 0), last + 2)
        return _Axis(
            self.weights[start:stop, cells], self.low[start:stop], slice(start, stop), cells
        )


@functools.lru_cache(maxsize=64)
def _bilinear(length: int, input_length: int, output_length: int) -> _Axis:
    """How a map of stride 4 is read at the original pixels: (output_length, length) weights.

    Pixel i of the original has its centre at (i + 0.5) · input / output pixels of the input, and
    cell j of the map its own at 4 (j + 0.5); beyond the outermost centres the border is repeated.
    """
    centres = (np.arange(output_length) + 0.5) * (input_length / output_length) / STRIDE - 0.5
    centres = np.clip(centres, 0, length - 1)
    low = np.minimum(centres.astype(np.int64), max(length - 2, 0))
    weights = np.zeros((output_length, length), np.float32)
    share = (centres - low).astype(np.float32)
    pixel = np.arange(output_length)
    weights[pixel, low] = 1 - share
    if length > 1:
        weights[pixel, low + 1] = share
    return _Axis(torch.from_numpy(weights), low, slice(0, output_length), slice(0, length))


def _upsample_positive(logit: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(h, w) logits → (4h, 4w) bool, True where torch's bilinear upsampling is positive."""
    import cv2

    fine = cv2.resize(logit, None, fx=STRIDE, fy=STRIDE, interpolation=cv2.INTER_LINEAR)
    margin = np.float32(_ROUNDING) * np.abs(logit).max()
    positive: npt.NDArray[np.bool_] = fine > margin
    # OpenCV is several times faster than torch, but only torch rounds like torch: a mask with a
    # pixel so near to zero that rounding decides (rare), or with a NaN, is done again.
    near = np.count_nonzero(fine >= -margin) - np.count_nonzero(positive)
    if near or not np.isfinite(margin):
        upsampled = F.interpolate(
            torch.from_numpy(np.ascontiguousarray(logit))[None, None],
            scale_factor=STRIDE,
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        positive = (upsampled > 0).numpy()
    return positive


@functools.lru_cache(maxsize=64)
def nearest(input_length: int, output_length: int) -> npt.NDArray[np.int64]:
    """Source index of every output pixel of torch's nearest interpolation: (output_length,)."""
    # Asking torch itself keeps its float32 rounding of floor(i * in / out).
    ramp = torch.arange(input_length, dtype=torch.float32)[None, None, :, None]
    index = F.interpolate(ramp, size=(output_length, 1), mode="nearest")[0, 0, :, 0]
    return index.long().numpy()
