"""A search tries what it should, once, however many workers ask, die or come back."""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.storage.sweep_report import Failure, Trial
from pipelines.sweep.search import Search, SearchConfig, suggest
from pipelines.sweep.space import Choices, Range, Space

GRID: Space = {"x": Choices((0.0, 0.2, 0.4, 0.6, 0.8, 1.0)), "y": Choices((1, 2, 3))}
RANGES: Space = {"x": Range(0.0, 1.0), "y": Range(1, 5, integer=True)}


def identify(values: Mapping[str, Any]) -> str:
    if values.get("x") == 0.6 and values.get("y") == 3:
        raise ValueError("these two do not go together")
    return str(sorted(values.items()))


def value_of(values: Mapping[str, Any]) -> float:
    """Best at x = 0.4, y = 2; the base is worth 0.5."""
    if not values:
        return 0.5
    return float(1 - (values["x"] - 0.4) ** 2 - 0.1 * abs(values["y"] - 2))


def work(
    search: Search,
    workers: int,
    *,
    seed: int = 0,
    stop: int | None = None,
    dies: Callable[[random.Random], bool] = lambda rng: False,
) -> list[Trial]:
    """Let workers take turns at random; what they finished, in order."""
    rng = random.Random(seed)
    doing: dict[str, Any] = {}
    done: list[Trial] = []
    idle = 0
    while not search.over:
        name = f"w{rng.randrange(workers)}"
        asked = doing.pop(name, None)
        if asked is None:
            search.enter(name)
            asked = search.next(name)
            if asked is None:
                idle += 1
                assert idle < 10_000, "the search hangs"
                continue
            doing[name] = asked
        elif dies(rng):
            search.enter(name)  # started again, its configuration lost
        else:
            configuration, budget = asked
            value = value_of(configuration.values) + budget * 1e-6
            search.tell(name, value)
            done.append(Trial(**asdict(configuration), budget=budget, value=value, metrics={}))
        if stop is not None and len(done) == stop:
            return done
    return done


@pytest.mark.parametrize("workers", [1, 3])
def test_a_grid_is_tried_whole_and_once(workers: int) -> None:
    search = Search(GRID, SearchConfig(), 30, identify)
    done = work(search, workers)
    assert len(done) == len({t.hash for t in done}) == 1 + 18 - 1
    assert {t.budget for t in done} == {30}
    assert max(done, key=lambda t: t.value).values == {"x": 0.4, "y": 2}
    assert search.failures() == [
        Failure(values={"x": 0.6, "y": 3}, reason="these two do not go together")
    ]


@settings(deadline=None, max_examples=25)
@given(
    stop=st.integers(1, 12),
    seed=st.integers(0, 99),
    workers=st.integers(1, 4),
    halving=st.sampled_from([0, 2, 3]),
    method=st.sampled_from(["grid", "random"]),
)
def test_a_resumed_search_repeats_nothing(
    stop: int, seed: int, workers: int, halving: int, method: Any
) -> None:
    config = SearchConfig(method=method, samples=15, halving=halving, first_rung=3)
    space = GRID if method == "grid" else RANGES
    first = work(Search(space, config, 30, identify), workers, seed=seed, stop=stop)
    second = work(Search(space, config, 30, identify, first), workers, seed=seed + 1)
    tried_at = [(t.hash, t.budget) for t in first + second]
    assert len(set(tried_at)) == len(tried_at)
    tried = {t.hash for t in first + second if t.number}
    assert len(tried) == (17 if method == "grid" else 15)
    if method == "random" and not halving:
        whole = {t.hash for t in work(Search(space, config, 30, identify), 1)}
        assert {t.hash for t in first + second} == whole


@given(seed=st.integers(0, 99))
def test_what_a_dead_worker_held_is_done_again_or_left_out(seed: int) -> None:
    search = Search(GRID, SearchConfig(), 30, identify)
    done = work(search, 3, seed=seed, dies=lambda rng: rng.random() < 0.2)
    left_out = [f for f in search.failures() if "died" in f.reason]
    assert len({t.hash for t in done}) == len(done) == 18 - len(left_out)


def test_a_fault_leaves_its_configuration_out_and_the_rest_goes_on() -> None:
    search = Search(GRID, SearchConfig(), 30, identify)
    assert search.next("a") is not None  # the base
    search.tell("a", 0.5)
    asked = search.next("a")
    assert asked is not None
    search.fault("a", "OverflowError: too large")
    failure = Failure(values=asked[0].values, reason="OverflowError: too large")
    assert failure in search.failures()
    assert asked[0].hash not in {t.hash for t in work(search, 2)}


def test_halving_gives_few_videos_to_most_and_all_to_the_best() -> None:
    config = SearchConfig(method="random", samples=60, halving=3, first_rung=4)
    assert config.rungs(40) == (4, 13, 40)
    done = work(Search(RANGES, config, 40, identify), 2)
    reached = {videos: [t for t in done if t.budget == videos] for videos in (4, 13, 40)}
    assert len(reached[4]) == 60
    assert 20 <= len(reached[13]) <= 30
    assert 6 <= len(reached[40]) - 1 <= 14  # besides the base
    best = max(reached[4], key=lambda t: t.value)
    assert best.hash in {t.hash for t in reached[40]}
    videos = sum(t.budget for t in done)
    assert videos < 0.5 * 61 * 40


def test_halving_of_a_few_still_brings_one_to_the_end() -> None:
    config = SearchConfig(method="random", samples=2, halving=3, first_rung=4)
    done = work(Search(RANGES, config, 40, identify), 2)
    assert {t.budget for t in done if t.number} == {4, 13, 40}


def test_bayesian_search_finds_more_than_random_draws() -> None:
    space: Space = {
        **{f"x{n}": Range(0.0, 1.0) for n in range(4)},
        "kind": Choices(("good", "bad", "worse")),
    }

    def worth(values: Mapping[str, Any]) -> float:
        kinds = {"good": 0.0, "bad": -0.5, "worse": -1.0}
        return kinds[values["kind"]] - sum((values[f"x{n}"] - 0.3) ** 2 for n in range(4))

    best = {}
    for method in ("random", "bayes"):
        config = SearchConfig(method=method, samples=60)  # type: ignore[arg-type]
        search = Search(space, config, 10, lambda values: str(sorted(values.items())))
        found = []
        while not search.over:
            asked = search.next("w")
            if asked is not None:
                values = asked[0].values
                found.append(worth(values) if values else -9.0)
                search.tell("w", found[-1])
        best[method] = max(found)
    assert best["bayes"] > best["random"]
    assert best["bayes"] > -0.1


def test_a_suggestion_is_a_function_of_what_is_known() -> None:
    config = SearchConfig(method="bayes", samples=20, halving=2, first_rung=4)
    space: Space = {"x": Range(0.0, 1.0), "y": Choices(([1, 2], [3, 4], None, True))}
    search = Search(space, config, 16, lambda values: str(values))
    for _ in range(14):
        asked = search.next("w")
        assert asked is not None
        search.tell("w", asked[0].values.get("x", 0.5))
    assert search.next("other") is not None  # one is being computed
    known = list(search.progress.values())
    drawn = suggest(space, known, 16, 5)
    assert drawn == suggest(space, known, 16, 5)
    assert drawn["y"] in ([1, 2], [3, 4], None, True)


@pytest.mark.parametrize(
    "bad", [{"samples": 0}, {"folds": 1}, {"halving": 1}, {"first_rung": 0}, {"seed": -1}]
)
def test_a_setting_that_means_nothing_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SearchConfig(**bad)  # type: ignore[arg-type]
