"""Pictures of more than 8 bits, as thermal cameras and microscopes make them, in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TAILS = (0.1, 99.9)
"""Percentiles that become black and white: a few dead or hot pixels do not decide."""


def eight_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels of any depth as uint8; those of 8 bits are returned as they are.

    Sensors fill a part, often a small one, of what 16 bits hold, so the values are stretched: the
    0.1 % percentile of all values of the picture becomes 0, the 99.9 % percentile 255, with a line
    between them that is cut off at both ends. Every picture by itself, all channels alike.

    image:   (H, W) or (H, W, C) whole numbers or floats
    returns: the same shape
    Raises:  ValueError: a value is not finite.
    """
    if image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    if not np.isfinite(image).all():
        raise ValueError("the image has values that are not finite")
    low, high = np.percentile(image, _TAILS)
    if low == high:
        low, high = float(image.min()), float(image.max())
    stretched = (image.astype(np.float64) - low) * (255 / ((high - low) or 1.0))
    return np.asarray(np.clip(np.rint(stretched), 0, 255), np.uint8)
