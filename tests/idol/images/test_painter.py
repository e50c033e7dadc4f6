"""The pictures of a film: colours that stay and differ, trails, a legend; blurred or cut out."""

from __future__ import annotations

import numpy as np
import pytest

from idol.images.painter import Painter
from idol.images.visualize import COLORS, identity_color

SIZE = (500, 640)
GROUND = np.random.default_rng(0).integers(90, 120, (*SIZE, 3), np.uint8)


def square(x: int, y: int = 200, side: int = 60) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def paint(painter: Painter, ids: list[int], places: list[int]) -> np.ndarray:
    masks = np.stack([square(x) for x in places]) if places else np.zeros((0, *SIZE), bool)
    return painter.paint(GROUND, masks, ids, ["cat"] * len(ids), [0.9] * len(ids), "00:01")


def test_an_identity_keeps_its_colour_and_no_two_in_sight_share_one() -> None:
    painter = Painter()
    assert painter.color(0) == identity_color(0)
    # The number of this one gives the same colour; it gets another, and keeps it.
    other = painter.color(COLORS)
    assert other != identity_color(0)
    seen = [painter.color(i) for i in (0, COLORS, 5, 2 * COLORS, 0, COLORS)]
    assert seen[0] == seen[4] == identity_color(0)
    assert seen[1] == seen[5] == other
    assert len(set(seen[:4])) == 4


def test_what_a_painter_remembers_does_not_grow() -> None:
    painter = Painter()
    for track_id in range(1000):
        paint(painter, [track_id], [100])
    assert max(len(painter._colors), len(painter._paths), len(painter._seen)) <= 256


def test_a_trail_leads_to_where_an_instance_was_and_ends_after_its_frames() -> None:
    painter = Painter(trail=3, legend=False)
    for x in (100, 200, 300):
        image = paint(painter, [4], [x])
    color = identity_color(4)
    assert (image[228:233, 200:250] == color).all(axis=2).any()  # between the first centres
    for _ in range(3):
        image = paint(painter, [4], [300])
    assert not (image[228:233, 200:250] == color).all(axis=2).any()
    plain = Painter(trail=0, legend=False)
    for x in (100, 200, 300):
        image = paint(plain, [4], [x])
    assert not (image[228:233, 200:250] == color).all(axis=2).any()


def test_boxes_are_tight() -> None:
    image = paint(Painter(trail=0, legend=False), [4], [100])
    exact = np.nonzero((image == identity_color(4)).all(axis=2)[202:])  # below the caption
    assert (exact[1].min(), exact[1].max()) == (99, 160)  # a line of 2 pixels around 100..159


def test_the_legend_names_who_is_seen_in_their_colours_and_does_not_move_the_picture() -> None:
    painter = Painter(trail=0)
    none = paint(painter, [], [])
    image = paint(painter, [7, 3], [100, 300])
    assert none.shape == image.shape
    assert image.shape[0] > SIZE[0]
    bar = image[SIZE[0] :]
    places = [np.nonzero((bar == identity_color(i)).all(axis=2))[1].min() for i in (3, 7)]
    assert places == sorted(places)
    assert not (none[SIZE[0] :] == identity_color(3)).all(axis=2).any()


def test_a_legend_of_more_than_fit_says_how_many_more() -> None:
    few = paint(Painter(trail=0), list(range(4)), [100] * 4)
    many = paint(Painter(trail=0), list(range(60)), [100] * 60)
    assert many.shape == few.shape


def test_a_blurred_instance_is_in_no_pixel_what_it_was_and_the_rest_is_untouched() -> None:
    mask = square(100)
    image = Painter("blur").paint(GROUND, mask[None], [1], ["cat"], [0.9])
    assert image.shape == GROUND.shape
    np.testing.assert_array_equal(image[~mask], GROUND[~mask])
    assert len(np.unique(image[mask], axis=0)) <= 64


def test_a_cutout_shows_the_instances_alone() -> None:
    mask = square(100)
    image = Painter("cutout").paint(GROUND, mask[None], [1], ["cat"], [0.9])
    np.testing.assert_array_equal(image[mask], GROUND[mask])
    assert len(np.unique(image[~mask])) == 1


@pytest.mark.parametrize("style", ["overlay", "blur", "cutout"])
def test_an_empty_mask_and_no_mask_are_drawn_too(style: str) -> None:
    empty = np.zeros((1, *SIZE), bool)
    painter = Painter(style)  # type: ignore[arg-type]
    shapes = {
        painter.paint(GROUND, empty[:n], [1][:n], ["cat"][:n], [0.5][:n]).shape for n in (0, 1)
    }
    assert len(shapes) == 1
