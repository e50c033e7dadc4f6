"""Overlays: stable colours, drawing that stays where it belongs, refusals that name the shape."""

import colorsys
import itertools

import numpy as np
import pytest

from idol.images.visualize import caption, identity_color, overlay

GREY = np.full((60, 80, 3), 100, np.uint8)


def square(y: int, x: int, side: int = 16) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_an_identity_keeps_its_colour_and_neighbours_differ_clearly() -> None:
    assert identity_color(3) == identity_color(3)
    hues = [colorsys.rgb_to_hls(*(c / 255 for c in identity_color(i)))[0] for i in range(5)]
    for a, b in itertools.combinations(hues, 2):
        assert min(abs(a - b), 1 - abs(a - b)) > 0.1
    assert len({identity_color(i) for i in range(24)}) == 24
    assert len(set(identity_color(-1))) == 1  # grey: no identity


def test_a_mask_is_tinted_with_its_identity_and_the_rest_is_untouched() -> None:
    mask = square(10, 20)
    image = overlay(GREY, mask[None], [7], opacity=0.5)
    middle = (np.array(identity_color(7)) + 100) / 2
    np.testing.assert_allclose(image[18, 28], middle, atol=1)
    np.testing.assert_array_equal(image[10, 20], identity_color(7))  # the outline is opaque
    np.testing.assert_array_equal(image[~mask], GREY[~mask])
    np.testing.assert_array_equal(GREY, 100)  # the frame itself is not drawn on


def test_text_and_boxes_are_drawn_and_stay_inside_the_frame() -> None:
    masks = np.stack([square(0, 0), square(44, 64)])
    plain = overlay(GREY, masks, [0, 1])
    boxes = np.array([[0, 0, 16, 16], [60, 40, 80, 60]])
    image = overlay(GREY, masks, [0, 1], [caption("person", 0, 0.87), "fish 1"], boxes=boxes)
    assert image.shape == GREY.shape
    assert (image != plain).any()
    np.testing.assert_array_equal(image[59, 62], identity_color(1))


def test_an_absent_instance_leaves_no_trace() -> None:
    image = overlay(GREY, np.zeros((1, 60, 80), bool), [0], ["ghost"])
    np.testing.assert_array_equal(image, GREY)
    np.testing.assert_array_equal(overlay(GREY, np.zeros((0, 60, 80)), []), GREY)
    np.testing.assert_array_equal(overlay(GREY, [], []), GREY)


def test_a_small_frame_can_be_enlarged_with_its_masks_and_boxes() -> None:
    mask = square(10, 20)
    image = overlay(GREY, mask[None], [0], boxes=[[20, 10, 36, 26]], zoom=3)
    assert image.shape == (180, 240, 3)
    changed = (image != 100).any(axis=2)
    ys, xs = np.nonzero(changed)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (30, 77, 60, 107)


def test_texts_of_neighbours_do_not_cover_one_another() -> None:
    masks = np.stack([square(20, 20), square(21, 22)])
    image = overlay(GREY, masks, [0, 1], ["a 0", "b 1"], zoom=4)
    plates = [(image == identity_color(i)).all(axis=2).sum() for i in (0, 1)]
    alone = [
        (overlay(GREY, masks[i : i + 1], [i], ["a 0"], zoom=4) == identity_color(i)).all(2).sum()
        for i in (0, 1)
    ]
    # Were one plate under the other, most of its pixels would be gone.
    assert plates[0] > 0.6 * alone[0]


def test_captions_say_category_identity_and_score() -> None:
    assert caption("person", 3, 0.8712) == "person 3 0.87"
    assert caption("person", 3) == "person 3"


def test_letters_the_font_lacks_do_not_stop_the_drawing() -> None:
    assert (overlay(GREY, square(30, 30)[None], [0], ["Füchse"]) != GREY).any()


@pytest.mark.parametrize(
    ("masks", "ids", "options", "message"),
    [
        (np.zeros((1, 60, 60)), [0], {}, r"masks must have shape \(1, 60, 80\)"),
        (np.zeros((2, 60, 80)), [0], {}, "masks must have shape"),
        (np.zeros((1, 60, 80)), [0], {"labels": ["a", "b"]}, "labels must have one text"),
        (np.zeros((1, 60, 80)), [0], {"boxes": np.zeros((2, 4))}, "boxes must have one row"),
        (np.zeros((1, 60, 80)), [0], {"opacity": 2.0}, "opacity"),
    ],
)
def test_what_does_not_fit_the_frame_is_refused(
    masks: np.ndarray, ids: list[int], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(GREY, masks, ids, **options)  # type: ignore[arg-type]


def test_a_frame_that_is_not_rgb_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8 RGB, got float64"):
        overlay(GREY / 255.0, np.zeros((0, 60, 80)), [])  # type: ignore[arg-type]


def test_trails_are_drawn_in_the_colours_and_under_the_texts() -> None:
    mask = square(30, 40)
    trail = [(5.0, 5.0), (45.0, 27.0)]
    plain = overlay(GREY, mask[None], [0], ["a 0"])
    image = overlay(GREY, mask[None], [0], ["a 0"], trails=[trail], colors=[(255, 0, 0)])
    assert (image[5, 5] != GREY[5, 5]).any()
    assert (plain[5, 5] == GREY[5, 5]).all()
    text = overlay(GREY, mask[None], [0], ["a 0"], colors=[(255, 0, 0)])
    plate = (text != overlay(GREY, mask[None], [0], colors=[(255, 0, 0)])).any(axis=2)
    np.testing.assert_array_equal(image[plate], text[plate])
    with pytest.raises(ValueError, match="zip"):
        overlay(GREY, mask[None], [0], trails=[trail, trail])
