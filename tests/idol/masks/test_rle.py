import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from idol.masks import kernels, rle


def encode(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


@st.composite
def masks(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    mask = rng.random((height, width)) < draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    # Repeated pixels make long runs, whose numbers take several characters.
    return np.kron(mask, np.ones((draw(st.sampled_from([1, 9])), draw(st.integers(1, 30))), bool))


@given(st.lists(masks(), max_size=6))
def test_measure_counts_pixels_and_foreground(pictures):
    pixels, areas = rle.measure([encode(m) for m in pictures])
    assert pixels.tolist() == [m.size for m in pictures]
    assert areas.tolist() == [m.sum() for m in pictures]


@given(masks(), masks(), st.binary(max_size=30))
def test_garbage_is_measured_without_touching_its_neighbours(before, after, garbage):
    pixels, areas = rle.measure([encode(before), garbage, encode(after)])
    assert (pixels[0], pixels[2]) == (before.size, after.size)
    assert (areas[0], areas[2]) == (before.sum(), after.sum())


def test_truncated_and_foreign_characters_are_unreadable():
    mask = np.kron(np.eye(9, dtype=bool), np.ones((9, 9), bool))
    counts = encode(mask)
    # 0x20 in the last character promises another: pycocotools would read past the end.
    pixels, _ = rle.measure([counts + b"`", b"\x00" + counts, b"o" * 8 + b"0", counts, b""])
    assert pixels.tolist() == [-1, -1, -1, mask.size, 0]


def written(number: int, longer: int) -> bytes:
    """A number in COCO's characters, padded with `longer` of them that change nothing."""
    groups = [number & 31]
    while number >> 5 * len(groups) != -(groups[-1] >> 4):
        groups.append(number >> 5 * len(groups) & 31)
    groups += [31 if number < 0 else 0] * longer
    return bytes(g + 48 + 32 * (n < len(groups) - 1) for n, g in enumerate(groups))


@settings(deadline=None)
@given(
    runs=st.lists(st.integers(0, 60), min_size=2, max_size=7),
    wrapped=st.sampled_from([0, 0, 2**30, -(2**30), 2**31, 2**32, -(2**32), 2**33]),
    padding=st.lists(st.integers(0, 6), min_size=7, max_size=7),
    compiled=st.booleans(),
)
def test_what_is_measured_has_the_area_that_pycocotools_finds(runs, wrapped, padding, compiled):
    size = [1, sum(runs) + 1]
    numbers = [*runs, 1]
    numbers[1] += wrapped
    steps = [n - (numbers[i - 2] if i > 2 else 0) for i, n in enumerate(numbers)]
    text = b"".join(map(written, steps, [*padding, 0]))
    if compiled:
        pixels, areas = kernels.measure(text, np.array([len(text)]))
    else:
        pixels, areas = rle.measure([text])
    if pixels[0] == size[1]:
        assert areas[0] == coco_mask.area({"size": size, "counts": text})


def test_a_number_that_pycocotools_reads_as_another_is_unreadable():
    # Was an area of 60 here and of 92 there: the second number has a seventh character.
    pixels, areas = rle.measure([b"TSP0bQP0XVP0hnooooO`^g0"])
    assert (pixels[0], areas[0]) == (-1, 0)


def test_all_written_forms_are_the_same_mask():
    mask = np.zeros((20, 30), bool)
    mask[4:12, 6:17] = True
    runs = [6 * 20 + 4]
    for _ in range(10):
        runs += [8, 12]
    runs += [8, 8 + 13 * 20]
    expected = {"size": [20, 30], "counts": encode(mask)}
    polygon = [[6.0, 4.0, 17.0, 4.0, 17.0, 12.0, 6.0, 12.0]]
    assert rle.compress({"size": [20, 30], "counts": runs}, (20, 30)) == expected
    assert rle.compress({"size": [20, 30], "counts": encode(mask).decode()}, (20, 30)) == expected
    assert rle.compress(polygon, (20, 30)) == expected
    assert rle.compress(None, (20, 30)) is None
    assert rle.compress([], (20, 30)) is None


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1.0, 2.0, 3.0, 4.0]], "at least three"),
        ([[1, 2, 3, 4, 5, "six"]], "no number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ({"size": [2, 2], "counts": [1, 2]}, "add up to 3 pixels"),
        ({"size": [2, 2], "counts": [-1, 5]}, "whole numbers"),
        ({"size": [2], "counts": "04"}, r"\[height, width\]"),
        ({"size": [2, 2], "counts": 7}, "compressed RLE string"),
        ("04", "a mask is null or"),
    ],
)
def test_what_is_no_mask_is_refused_with_the_reason(segmentation, message):
    with pytest.raises(ValueError, match=message):
        rle.compress(segmentation, (2, 2))


def test_check_names_the_first_mask_that_does_not_fill_its_size():
    counts = encode(np.ones((3, 4), bool))
    areas, wrong = rle.check(
        [{"size": [3, 4], "counts": counts}, {"size": [4, 4], "counts": counts}]
    )
    assert areas[0] == 12
    assert wrong == 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=12) | st.text("0123?@ABOPQo`a", max_size=12), max_size=6))
def test_the_compiled_reading_says_the_same_of_any_string(strings):
    counts = [s if isinstance(s, bytes) else s.encode() for s in strings]
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rle._Read, "kernel", None)
        patch.setattr(rle, "_COMPILE_FROM", 1 << 60)
        pixels, areas = rle.measure(counts)
    compiled = kernels.measure(b"".join(counts), lengths)
    np.testing.assert_array_equal(compiled[0], pixels)
    np.testing.assert_array_equal(compiled[1], areas)


def test_a_large_set_is_read_by_compiled_code(monkeypatch):
    counts = [encode(m) for m in np.random.default_rng(0).random((20, 30, 40)) < 0.5]
    expected = rle.measure(counts)
    monkeypatch.setattr(rle, "_COMPILE_FROM", 10)
    monkeypatch.setattr(rle, "_Read", type("_Read", (), dict(vars(rle._Read))))
    rle._Read.kernel = None
    found = rle.measure(counts)
    assert rle._Read.kernel is not None
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(0, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_decode_inverts_encode(
    seed: int, count: int, height: int, width: int, share: float
) -> None:
    bits = np.random.default_rng(seed).random((count, height, width)) < share
    counts = rle.encode_masks(torch.from_numpy(bits))
    assert np.array_equal(rle.decode_masks(counts, (height, width)), bits)
    assert np.array_equal(rle.decode_masks([c.decode() for c in counts], (height, width)), bits)
    for mask, text in zip(bits, counts, strict=True):
        alone = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert text == alone["counts"]


def test_long_runs_are_decoded() -> None:
    bits = np.zeros((1, 3000, 2000), np.bool_)
    bits[0, 1500:, 1999] = True
    assert np.array_equal(rle.decode_masks(rle.encode_masks(bits), (3000, 2000)), bits)


@pytest.mark.parametrize("counts", [b"", b"\x00", b"o", b"~~~~~~~~~~~~~", b"0", b"ABC", b"\xff1"])
def test_counts_that_do_not_fill_the_size_are_refused_by_position(counts: bytes) -> None:
    good = rle.encode_masks(np.ones((1, 5, 7), np.bool_))
    with pytest.raises(ValueError, match=r"counts\[1\] .* height 5 and width 7"):
        rle.decode_masks([*good, counts], (5, 7))


def test_encode_refuses_a_single_mask_without_its_axis() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(N, H, W\).*masks\[None\]"):
        rle.encode_masks(np.zeros((4, 5), np.bool_))
