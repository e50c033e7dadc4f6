"""The compiled reading of masks counts pixels, and trusts no string."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from idol.masks import packed, rle

rle_kernel = pytest.importorskip("idol.masks.kernels")


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
            else {
                "size": list(size),
                "counts": coco_mask.encode(np.asfortranarray(pixels[n, t].astype(np.uint8)))[
                    "counts"
                ],
            }
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
    if number > 2:  # one track under two classes
        pixels[2], counts[2] = pixels[0], counts[0]
    true_pixels, true_counts = tracks(rng, num_truth, length, size)
    wanted = rng.random((number, num_truth)) < 0.7
    found = packed.pack(counts, size, length)
    truth = packed.pack(true_counts, size, length)
    expected = np.einsum("nthw,gthw->tng", pixels.astype(int), true_pixels.astype(int)) * wanted
    for per_frame in (True, False):
        shared, areas = rle_kernel.overlap(
            found, truth, wanted, size[0] * size[1], per_frame=per_frame
        )
        np.testing.assert_array_equal(areas, pixels.sum(axis=(2, 3)))
        want = expected if per_frame else expected.sum(axis=0, keepdims=True)
        np.testing.assert_array_equal(np.where(wanted, shared, 0), want)


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
    truth = packed.pack([[{"size": [pixels, 1], "counts": whole}]], (pixels, 1), 1)
    found = packed.pack([[{"size": [pixels, 1], "counts": s}] for s in strings], (pixels, 1), 1)
    sums, areas = rle._measure(strings, np.fromiter(map(len, strings), np.int64, len(strings)))
    measured = rle_kernel.overlap(
        found, truth, np.ones((len(strings), 1), bool), pixels, per_frame=False
    )
    if (sums != pixels).any():
        assert measured is None
    else:
        # All of the picture is true, so what is shared is the area.
        np.testing.assert_array_equal(measured[0][0, :, 0], areas)
        np.testing.assert_array_equal(measured[1][:, 0], areas)


def test_tracks_of_another_size_or_length_are_not_packed():
    mask = {"size": [2, 3], "counts": b"6"}
    assert packed.pack([[mask, None]], (2, 3), 2) is not None
    assert packed.pack([[mask, None]], (3, 2), 2) is None
    assert packed.pack([[mask]], (2, 3), 2) is None
