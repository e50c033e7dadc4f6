"""The compiled reading of masks counts pixels, and trusts no string."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from idol.masks import kernels, rle


def tracks(rng, number, length, size):
    """Random masks (N, T, H, W) bool and their RLEs; some are absent, empty, full or frayed."""
    shape = (number, length)
    share = rng.choice([0.0, 0.03, 0.5, 0.97, 1.0], (*shape, 1, 1))
    pixels = rng.random((*shape, *size)) < share
    box = rng.random(shape) < 0.5
    for n, t in zip(*np.nonzero(box), strict=True):
        pixels[n, t] = False
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        pixels[n, t, top : top + 1 + size[0] // 2, left : left + 1 + size[1] // 2] = True
    absent = rng.random(shape) < 0.2
    pixels[absent] = False
    counts = [
        [
            None
            if absent[n, t]
            else coco_mask.encode(np.asfortranarray(pixels[n, t].astype(np.uint8)))["counts"]
            for t in range(length)
        ]
        for n in range(number)
    ]
    return pixels, counts


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(0, 5),
    num_truth=st.integers(0, 4),
    length=st.integers(1, 4),
    # Pictures whose pixels end within a word of 64, and with one.
    size=st.sampled_from([(1, 1), (7, 9), (8, 8), (64, 2), (16, 12), (5, 13), (33, 31), (1, 130)]),
)
def test_overlaps_are_the_pixels_that_both_have(seed, number, num_truth, length, size):
    rng = np.random.default_rng(seed)
    pixels, counts = tracks(rng, number, length, size)
    true_pixels, true_counts = tracks(rng, num_truth, length, size)
    wanted = rng.random((number, num_truth)) < 0.7
    expected = np.einsum("nthw,gthw->tng", pixels.astype(int), true_pixels.astype(int)) * wanted
    for per_frame in (True, False):
        areas, shared = kernels.overlap(
            counts, true_counts, wanted, size[0] * size[1], length, per_frame=per_frame
        )
        np.testing.assert_array_equal(areas, pixels.sum(axis=(2, 3)))
        want = expected if per_frame else expected.sum(axis=0, keepdims=True)
        np.testing.assert_array_equal(shared, want)


@settings(deadline=None, max_examples=300)
@given(
    strings=st.lists(
        st.binary(max_size=10) | st.text("0123?@ABOPQo`a", max_size=10).map(str.encode),
        min_size=1,
        max_size=4,
    ),
    pixels=st.integers(1, 70),
)
def test_a_string_that_does_not_fill_the_picture_is_noticed(strings, pixels):
    whole = coco_mask.encode(np.ones((pixels, 1), np.uint8, order="F"))["counts"]
    truth, found = ([[counts] for counts in side] for side in ([whole], strings))
    read = [rle.runs(s) for s in strings]
    expected = [-1 if runs is None or runs.sum() != pixels else runs[1::2].sum() for runs in read]
    # All of the picture is true, so what is shared is the area; a pair that is not wanted shares 0.
    for wanted in (True, False):
        pairs = np.full((len(strings), 1), wanted)
        areas, shared = kernels.overlap(found, truth, pairs, pixels, 1, per_frame=False)
        assert areas[:, 0].tolist() == expected
        assert shared[0, :, 0].tolist() == [max(area, 0) * wanted for area in expected]
    if -1 in expected:
        with pytest.raises(ValueError, match=f"no readable RLE of {pixels} pixels"):
            kernels.overlap(truth, found, pairs.T | True, pixels, 1, per_frame=False)
