"""Mask IoU is the released ratio in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.masks import iou


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(0, 6),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_overlaps_are_the_released_float32_ratio(
    seed: int, count: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random((count, height, width)) < rng.random((count, 1, 1)) ** 2
    result = iou.mask_iou(torch.from_numpy(bits))
    assert result.shape == (count, count)
    assert result.dtype == torch.float32
    for i in range(count):
        for j in range(count):
            inter = torch.tensor(int((bits[i] & bits[j]).sum()), dtype=torch.float32)
            union = torch.tensor(int((bits[i] | bits[j]).sum()), dtype=torch.float32)
            assert result[i, j] == (inter + 1e-6) / (union + 1e-6)


def test_two_empty_masks_overlap_fully() -> None:
    assert iou.mask_iou(torch.zeros(2, 3, 3, dtype=torch.bool)).tolist() == [[1, 1], [1, 1]]


def test_half_overlap_is_rounded_in_float32() -> None:
    # 1 of 2 pixels: (1 + 1e-6) / (2 + 1e-6) is above 0.5, in float32 by the rounding of 1e-6.
    bits = torch.tensor([[[True, True]], [[True, False]]])
    expected = (np.float32(1) + np.float32(1e-6)) / (np.float32(2) + np.float32(1e-6))
    assert iou.mask_iou(bits)[0, 1].item() == expected
    # 100 of 200 pixels: 1e-6 disappears, and the ratio is 0.5 exactly, not above.
    bits = torch.zeros(2, 20, 10, dtype=torch.bool)
    bits[0], bits[1, :10] = True, True
    assert iou.mask_iou(bits)[0, 1].item() == 0.5


@pytest.mark.gpu
def test_overlaps_are_the_same_on_a_gpu() -> None:
    bits = torch.rand(8, 45, 80, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(iou.mask_iou(bits.cuda()).cpu(), iou.mask_iou(bits))
