"""What a sweep is asked for in numbers."""

import pytest

from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Choices, Range


def test_rungs_grow_by_the_factor_and_end_with_everything() -> None:
    asha = SearchConfig(scheduler="asha")
    assert asha.rungs(48) == (8, 24, 48)
    assert asha.rungs(24) == (8, 24)
    assert asha.rungs(9) == (8, 9)
    assert asha.rungs(5) == (5,)
    assert SearchConfig().rungs(48) == (48,)


def test_a_grid_has_its_own_number_of_configurations() -> None:
    space = {"x": Choices((1, 2, 3)), "y": Choices((True, False))}
    assert SearchConfig(samples=50).planned(space) == 7
    assert SearchConfig(method="random", samples=50).planned(space) == 51
    with pytest.raises(ValueError, match="has a range"):
        SearchConfig().planned({"x": Range(0, 1)})


@pytest.mark.parametrize(
    "bad",
    [{"samples": 0}, {"folds": 1}, {"reduction_factor": 1}, {"grace_period": 0}, {"seed": -1}],
)
def test_a_setting_that_means_nothing_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SearchConfig(**bad)  # type: ignore[arg-type]
