"""Pictures of more than 8 bits keep their contrast in 8."""

import numpy as np
import pytest

from idol.images.depth import eight_bits


def test_a_picture_of_8_bits_is_left_alone():
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    np.testing.assert_array_equal(eight_bits(image), image)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("bounds", [(0, 4095), (7000, 9000), (0, 30000), (29_000, 31_000)])
def test_values_in_a_part_of_the_range_use_all_grey_levels(bounds, dtype):
    image = np.linspace(*bounds, 64 * 48).reshape(48, 64).astype(dtype)
    found = eight_bits(image)
    assert found.dtype == np.uint8
    assert (found.min(), found.max()) == (0, 255)
    assert len(np.unique(found)) > 250
    assert (np.diff(found.reshape(-1).astype(int)) >= 0).all()


def test_dead_and_hot_pixels_do_not_take_the_contrast():
    image = np.linspace(29_000, 31_000, 100 * 100).reshape(100, 100).astype(np.uint16)
    image[3, 3], image[50, 7] = 0, 65535
    assert len(np.unique(eight_bits(image))) > 250


def test_channels_are_stretched_alike():
    image = np.zeros((10, 10, 3), np.uint16)
    image[:5, :, 0], image[:5, :, 1] = 4000, 2000
    assert eight_bits(image)[0, 0].tolist() == [255, 128, 0]


def test_a_small_bright_object_on_black_is_seen():
    image = np.zeros((100, 100), np.uint16)
    image[5, 5] = 40
    assert eight_bits(image)[5, 5] == 255
    assert not eight_bits(np.full((4, 4), 500, np.uint16)).any()


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        eight_bits(np.array([[0.0, np.nan]], np.float32))
