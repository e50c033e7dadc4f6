"""A frame in any form is the same RGB picture, and what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from idol.images.given import as_rgb
from idol.images.live import SourceError

IMAGE = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
"""(6, 8, 3) RGB."""


@pytest.mark.parametrize(
    ("given", "bgr"),
    [
        (IMAGE, False),
        (IMAGE[..., ::-1], True),
        (IMAGE.transpose(2, 0, 1), False),
        (torch.from_numpy(IMAGE), False),
        (torch.from_numpy(IMAGE).permute(2, 0, 1), False),
        (torch.from_numpy(IMAGE).permute(2, 0, 1) / 255, False),
        (IMAGE.astype(np.float64) / 255, False),
        (PIL.Image.fromarray(IMAGE), False),
        (PIL.Image.fromarray(IMAGE), True),  # whose order is known
    ],
)
def test_every_form_is_the_same_picture(given: Any, bgr: bool) -> None:
    found = as_rgb(given, bgr=bgr)
    np.testing.assert_array_equal(found, IMAGE)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


def test_a_path_is_read_and_a_photograph_turned_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), cv2.cvtColor(IMAGE, cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(as_rgb(path), IMAGE)
    np.testing.assert_array_equal(as_rgb(str(path), bgr=True), IMAGE)
    turned = PIL.Image.fromarray(IMAGE)
    turned.getexif()[0x0112] = 6  # orientation: a quarter turn clockwise
    np.testing.assert_array_equal(as_rgb(turned), np.rot90(IMAGE, -1))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([[0]], TypeError, "got list"),
        (IMAGE.astype(np.int64), TypeError, "got int64"),
        (IMAGE[..., 0], ValueError, r"got \(6, 8\). A grey one"),
        (IMAGE[:0], ValueError, r"got \(0, 8, 3\)"),
        (IMAGE.astype(np.float32), ValueError, r"in \[0, 1\], got"),
        (np.full((6, 8, 3), np.nan), ValueError, "got nan"),
        ("absent.png", SourceError, "absent.png: the frame cannot be read"),
    ],
)
def test_what_is_no_frame_is_refused_with_what_to_do(
    given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        as_rgb(given)
