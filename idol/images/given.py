"""A frame in any of the forms that libraries give it, as (H, W, 3) RGB."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idol.images.depth import eight_bits
from idol.images.live import read_image

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

    Given = NDArray[Any] | Tensor | PIL.Image.Image | str | os.PathLike[str]


def as_rgb(frame: Given, *, bgr: bool = False) -> NDArray[np.uint8]:
    """A frame as (H, W, 3) uint8 RGB.

    frame: an array or tensor (H, W, 3), or (3, H, W), of uint8, of uint16, which `eight_bits`
           stretches, or of floats in [0, 1]; a PIL image; or the path of an image file
    bgr:   arrays and tensors are BGR, as OpenCV reads and takes them
    Raises:
        TypeError: another type, or another dtype.
        ValueError: another shape, floats outside [0, 1], a file that is no image.
    """
    if isinstance(frame, str | os.PathLike):
        return read_image(Path(frame))
    array: Any = frame
    # PIL images and tensors are known without importing their libraries.
    if hasattr(array, "getexif"):
        from PIL import ImageOps

        # Copied: what PIL hands out cannot be written to.
        return np.array(ImageOps.exif_transpose(array).convert("RGB"), np.uint8)
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    if not isinstance(array, np.ndarray):
        raise TypeError(
            "a frame is an array or tensor of uint8, 0 to 255, of uint16, or of floats in [0, 1], "
            f"a PIL image or the path of one, got {type(frame).__name__}"
        )
    shape = array.shape
    if array.ndim == 3 and shape[0] == 3 and shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(
            f"a frame must have shape (height, width, 3) or (3, height, width), got {shape}. "
            "A grey one: np.repeat(frame[..., None], 3, axis=2)."
        )
    array = array[..., ::-1] if bgr else array
    return np.ascontiguousarray(_bytes(array))


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype.kind == "f":
        # NaN fails both comparisons.
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"a frame of floats has values in [0, 1], got {array.min():g} to {array.max():g}. "
                "Of 0 to 255: frame.round().astype(np.uint8)."
            )
        return np.asarray(np.rint(255 * array), np.uint8)
    if array.dtype not in (np.uint8, np.uint16):
        raise TypeError(
            f"a frame is of uint8, 0 to 255, of uint16, or of floats in [0, 1], got {array.dtype}"
        )
    return eight_bits(array)
