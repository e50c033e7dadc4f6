"""Pictures side by side, small enough for a page."""

import numpy as np
import pytest

from pipelines.report import strips
from pipelines.report.strips import Strip


def test_large_pictures_are_shrunk() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), dtype=np.uint8)
    assert len(strips.data_uri(noise)) < 250_000


def test_unequal_rows_and_other_pictures_are_refused() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="truth of strip 's' must have one entry for each of 2"):
        Strip(title="s", predictions=[picture, picture], truth=[picture])
    with pytest.raises(ValueError, match="uint8 RGB, got float64"):
        strips.data_uri(np.zeros((4, 4, 3)))  # type: ignore[arg-type]


def test_places_are_spread_from_the_first_to_the_last() -> None:
    assert strips.evenly(10, 4) == [0, 3, 6, 9]
    assert strips.evenly(2, 4) == [0, 1]
