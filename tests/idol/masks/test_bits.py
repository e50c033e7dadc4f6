"""Strings from bits are those that pycocotools makes from pictures."""

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from idol.masks import bits


def as_bits(masks):
    """(n, H, W) bool → (n, W, words) uint32, bits beyond H random."""
    count, height, width = masks.shape
    words = -(-height // 32)
    padded = np.random.default_rng(0).random((count, width, words * 32)) < 0.5
    padded[:, :, :height] = masks.transpose(0, 2, 1)
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return packed.view(np.uint32).reshape(count, width, words)


def right(masks):
    return [
        pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        for mask in masks
    ]


@settings(deadline=None)  # compiles at its first call
@given(
    height=st.integers(1, 100),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    share=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
    block=st.sampled_from([1, 7, 40]),
)
def test_strings_from_bits_are_pycocotools_own(height, width, seed, share, block):
    rng = np.random.default_rng(seed)
    cells = rng.random((3, -(-height // block), -(-width // block))) < share
    masks = cells.repeat(block, 1).repeat(block, 2)[:, :height, :width]
    assert bits.encode(as_bits(masks), height) == right(masks)


def test_long_runs_take_several_characters():
    masks = np.zeros((2, 720, 1280), np.bool_)
    masks[0, 300:500, 400:900] = True
    masks[1] = True
    assert bits.encode(as_bits(masks), 720) == right(masks)


def test_bits_of_another_height_are_refused():
    with pytest.raises(ValueError, match="have 2 words a column, got 1"):
        bits.encode(np.zeros((1, 4, 1), np.uint32), 33)
