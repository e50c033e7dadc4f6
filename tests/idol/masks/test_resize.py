"""Mask logits at the original size are the released ones, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from idol.masks import resize, rle


def blobs(seed: int, count: int, height: int, width: int) -> Tensor:
    """(count, height, width) logits: smooth hills, some maps empty, some full of exact zeros."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    maps = np.empty((count, height, width), np.float32)
    for i in range(count):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        distance = ((y - cy) / rng.uniform(1, height)) ** 2 + (
            (x - cx) / rng.uniform(1, width)
        ) ** 2
        maps[i] = rng.uniform(-2, 8) - 10 * distance + rng.normal(0, rng.choice([0, 1]), y.shape)
        kind = rng.integers(0, 6)
        if kind == 0:
            maps[i] = np.round(maps[i])  # interpolation meets 0 exactly
        elif kind == 1:
            maps[i] = np.minimum(maps[i], 0)
    return torch.from_numpy(maps)


def released_resize(logits: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The order of the released code."""
    large = F.interpolate(logits[:, None], scale_factor=4, mode="bilinear", align_corners=False)
    cropped = large.sigmoid()[:, :, : input_size[0], : input_size[1]]
    return F.interpolate(cropped, size=size, mode="nearest")[:, 0] > 0.5


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(0, 3),
    cells=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    crop=st.tuples(st.integers(0, 31), st.integers(0, 31)),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
)
def test_resizing_gives_the_released_pixels(
    seed: int, count: int, cells: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]
) -> None:
    logits = blobs(seed, count, *cells)
    height, width = (max(4 * n - c, 1) for n, c in zip(cells, crop, strict=True))
    result = resize.resize(logits, (height, width), size)
    assert result.dtype == torch.bool
    assert torch.equal(result, released_resize(logits, (height, width), size))
    assert resize.resize_and_encode(logits, (height, width), size) == rle.encode_masks(result)


def test_resizing_gives_the_released_pixels_at_real_sizes() -> None:
    logits = blobs(5, 6, 120, 216)
    for size in ((720, 1280), (360, 640), (1080, 1920), (480, 853)):
        result = resize.resize(logits, (480, 853), size)
        assert torch.equal(result, released_resize(logits, (480, 853), size))


def test_a_mask_that_only_rounding_decides_is_left_to_torch() -> None:
    # Interpolation between v and -v meets zero, with a sign that depends on the order of sums.
    rng = np.random.default_rng(0)
    logits = np.sign(rng.normal(size=(3, 12, 12))) * 0.1
    logits = torch.from_numpy(logits.astype(np.float32))
    assert torch.equal(
        resize.resize(logits, (48, 48), (48, 48)), released_resize(logits, (48, 48), (48, 48))
    )


def test_background_of_nan_or_infinity_stays_background() -> None:
    logits = torch.full((2, 8, 8), -3.0)
    logits[:, 3:5, 3:5] = 2.0
    logits[0, 4, 4], logits[1, 0, 0] = float("nan"), float("-inf")
    result = resize.resize(logits, (32, 32), (32, 32))
    assert torch.equal(result, released_resize(logits, (32, 32), (32, 32)))


@pytest.mark.parametrize("input_size", [(0, 8), (33, 8), (8, 65)])
def test_an_input_size_beyond_the_padded_input_is_refused(input_size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"at most the padded input \(32, 64\)"):
        resize.resize(torch.zeros(1, 8, 16), input_size, (10, 10))


def test_smooth_resizing_reads_the_map_at_the_centres_of_the_original_pixels():
    # One row, cells of 4 input pixels, centres at 2 and 6: the line through them is x - 3.5, so
    # at the input's own size the pixels with centres 0.5 .. 7.5 are positive from 4.5 on. Three
    # times as fine, centres are (i + 0.5) / 3, positive where above 3.5, that is from i = 11 on.
    logits = torch.tensor([[[-1.5, 2.5]]])
    same = resize.resize(logits, (4, 8), (4, 8), "smooth")[0, 0]
    assert same.tolist() == [False] * 4 + [True] * 4
    fine = resize.resize(logits, (4, 8), (12, 24), "smooth")[0, 0]
    assert fine.long().argmax() == 11
    assert bool(fine[11:].all())


@settings(deadline=None)
@given(seed=st.integers(0, 2**16), height=st.integers(1, 6), width=st.integers(1, 6))
def test_smooth_and_released_resizing_agree_at_the_size_of_the_input(seed, height, width):
    logits = torch.randn(2, height, width, generator=torch.Generator().manual_seed(seed))
    size = (4 * height, 4 * width)
    smooth = resize.resize(logits, size, size, "smooth")
    released = resize.resize(logits, size, size)
    # Only rounding at a value of zero could differ, which has no chance here.
    assert torch.equal(smooth, released)


def test_smooth_resizing_leaves_no_staircase_on_a_slanted_edge():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    logits = (x - 1.5 * y)[None]  # an edge at 1.5 columns a row
    size = (8 * 4 * 3, 12 * 4 * 3)
    edge = {
        method: resize.resize(logits, (32, 48), size, method)[0].long().argmax(1)
        for method in ("smooth", "released")
    }
    step = {method: (e[21:72] - e[20:71]).max() for method, e in edge.items()}
    assert step["smooth"] <= 2
    assert step["released"] >= 3
