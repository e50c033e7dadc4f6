"""Looks of synthetic objects: hues stay in their band, what is drawn is where the outline is."""

import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.images import synthetic_looks as looks
from idol.images.synthetic_looks import CATEGORIES, Category, Instance


def still(outline: np.ndarray, x: float, y: float, radius: float, angle: float = 0.0) -> Instance:
    """One frame of an undeformed white object."""
    return Instance(
        label=0,
        texture=np.full((96, 96, 3), 255, np.float32),
        outline=outline.astype(np.float32),
        centres=np.array([[x, y]], np.float32),
        radii=np.array([radius], np.float32),
        angles=np.array([angle], np.float32),
        stretches=np.ones(1, np.float32),
        bends=np.zeros(1, np.float32),
        wobbles=np.zeros((1, 3), np.float32),
    )


def drawn(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    canvas = np.zeros((100, 120, 3), np.float32)
    covered = looks.draw(canvas, instance, 0, np.zeros(2, np.float32))
    return canvas, covered


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda c: c.name)
def test_an_outline_has_the_size_of_its_radius(category: Category) -> None:
    reach = np.linalg.norm(looks.outline(category.outline), axis=1)
    assert 0.9 < reach.max() < 1.25


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda c: c.name)
@settings(max_examples=10, deadline=None)
@given(x=st.floats(50, 70), y=st.floats(45, 55), radius=st.floats(12, 30), angle=st.floats(0, 6.28))
def test_covered_pixels_are_those_inside_the_outline(
    category: Category, x: float, y: float, radius: float, angle: float
) -> None:
    outline = looks.outline(category.outline)
    canvas, covered = drawn(still(outline, x, y, radius, angle))
    # Each pixel on the edge is rounded up or down: half a pixel of it at the very most.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = outline @ turn.T * radius + [x, y]
    area = cv2.contourArea(points.astype(np.float32))
    length = cv2.arcLength(points.astype(np.float32), True)
    assert abs(covered.sum() - area) < 0.55 * length
    # A pixel well inside is painted, one well outside is not.
    for (row, column), inside in np.ndenumerate(covered):
        distance = cv2.pointPolygonTest(points.astype(np.float32), (column, row), True)
        if abs(distance) > 1:
            assert inside == (distance > 0)
            assert (canvas[row, column] > 0).any() == inside


def test_a_square_covers_exactly_its_pixels() -> None:
    # A square of half side 5 around (20.5, 30.5) reaches from pixel edge to pixel edge:
    # columns 16..25 and rows 26..35, for a pixel's centre is its integer coordinate.
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    _, covered = drawn(still(square, 20.5, 30.5, 5.0))
    expected = np.zeros((100, 120), bool)
    expected[26:36, 16:26] = True
    np.testing.assert_array_equal(covered, expected)


def test_what_is_outside_the_frame_covers_nothing() -> None:
    canvas, covered = drawn(still(looks.outline("star"), -80, 50, 20))
    assert not covered.any()
    assert not canvas.any()


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda c: c.name)
def test_hues_stay_in_the_band_of_the_category(category: Category) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        common = rng.uniform(-1, 1, 6).astype(np.float32)
        texture = looks.texture(rng, category, 1.0, common)
        assert texture.min() >= 0
        assert texture.max() <= 255
        red, green, blue = texture.reshape(-1, 3).mean(axis=0) / 255
        hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
        assert abs((hue - category.hue + 180) % 360 - 180) < 30


def test_without_variation_look_alikes_are_twins() -> None:
    rng, common = np.random.default_rng(0), np.zeros(6, np.float32)
    first, second = (looks.texture(rng, CATEGORIES[0], 0.0, common) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = looks.texture(rng, CATEGORIES[0], 1.0, common)
    assert np.abs(first - other).mean() > 5


def test_the_background_moves_and_is_textured() -> None:
    rest = np.zeros(2, np.float32)
    moving = looks.background(np.random.default_rng(1), (64, 96), 8, contrast=0.5, speed=0.05)
    first, last = moving(0, rest), moving(7, rest)
    assert first.shape == (64, 96, 3)
    assert first.std() > 15
    assert np.abs(first - last).mean() > 5
    plain = looks.background(np.random.default_rng(1), (64, 96), 8, contrast=0.0, speed=0.05)
    assert np.ptp(plain(0, rest)) < 1e-3
