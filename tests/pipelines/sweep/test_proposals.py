"""A search proposes what it should, once, and goes on from what is known."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.storage.sweep_report import Configuration, Failure, Trial
from pipelines.sweep.objective import Objective
from pipelines.sweep.proposals import Proposals
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Choices, Range, Space

GRID: Space = {"a.x": Choices((0.0, 0.2, 0.4, 0.6)), "a.y": Choices((1, 2, 3))}
RANGES: Space = {"a.x": Range(0.0, 1.0), "a.y": Range(1, 5, integer=True)}


def identify(values: Mapping[str, Any]) -> str:
    if values.get("a.x") == 0.6 and values.get("a.y") == 3:
        raise ValueError("these two do not go together")
    return str(sorted(values.items()))


def workload(*rungs: int, separate: tuple[str, ...] = ()) -> Any:
    goal = Objective("AP", {"AP": 1.0}, separate)
    return SimpleNamespace(rungs=rungs or (10,), identify=identify, goal=goal)


def proposed(search: Proposals, most: int = 1000) -> list[dict[str, Any]]:
    """What the search proposes before it is told anything."""
    found = (search.suggest(str(n)) for n in range(most))
    return [each for each in iter(lambda: next(found), "FINISHED") if isinstance(each, dict)]


def values_of(each: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in each.items() if key != "number"}


def worth(values: Mapping[str, Any]) -> float:
    """Best at x = 0.3 in every dimension, and of the good kind."""
    kinds = {"good": 0.0, "bad": -0.5, "worse": -1.0}
    own = [value for key, value in values.items() if key.startswith("a.x")]
    return kinds[values["a.kind"]] - sum((x - 0.3) ** 2 for x in own)


def test_a_grid_is_proposed_whole_and_once_after_the_base() -> None:
    search = Proposals(GRID, SearchConfig(), workload())
    found = proposed(search)
    assert found[0] == {"number": 0}
    assert len(found) == len({str(values_of(each)) for each in found}) == 1 + 12 - 1
    # A number is a place of the grid, also beside what is refused.
    assert [each["number"] for each in found] == [*range(12)]
    assert search.refused == [
        Failure(values={"a.x": 0.6, "a.y": 3}, reason="these two do not go together")
    ]
    assert search.suggest("more") == "FINISHED"


def test_random_draws_are_a_function_of_seed_and_number() -> None:
    config = SearchConfig(method="random", samples=30, seed=3)
    found = proposed(Proposals(RANGES, config, workload()))
    assert len(found) == 31
    assert found == proposed(Proposals(RANGES, config, workload()))
    assert len({identify(values_of(each)) for each in found}) == 31


def test_a_small_space_ends_when_all_of_it_was_tried() -> None:
    space: Space = {"a.y": Choices((1, 2, 3))}
    for method in ("random", "bayes"):
        config = SearchConfig(method=method, samples=20)  # type: ignore[arg-type]
        found = proposed(Proposals(space, config, workload()))
        assert sorted(each.get("a.y", 0) for each in found) == [0, 1, 2, 3]


def test_bayesian_search_finds_more_than_random_draws() -> None:
    space: Space = {f"a.x{n}": Range(0.0, 1.0) for n in range(4)}
    space["a.kind"] = Choices(("good", "bad", "worse"))
    best = {}
    for method in ("random", "bayes"):
        config = SearchConfig(method=method, samples=60)  # type: ignore[arg-type]
        search = Proposals(space, config, workload())
        values = []
        while isinstance(each := search.suggest(str(len(values))), dict):
            value = worth(each) if len(each) > 1 else -9.0
            values.append(value)
            result = {"value": value, "budget": 10}
            search.on_trial_complete(str(len(values) - 1), result)
        best[method] = max(values)
    assert best["bayes"] > best["random"]
    assert best["bayes"] > -0.1


def test_what_was_stopped_early_is_a_pruned_trial_of_optuna() -> None:
    search = Proposals(RANGES, SearchConfig(method="bayes", samples=9), workload(4, 8, 16))
    for trial, budgets in (("0", (16,)), ("1", (4,)), ("2", (4, 8)), ("3", (4, 8, 16))):
        assert isinstance(search.suggest(trial), dict)
        for rung, budget in enumerate(budgets, start=1):
            told = {"value": budget / 100, "budget": budget, "training_iteration": rung}
            if budget != budgets[-1]:  # Tune tells the last one only as the end
                search.on_trial_result(trial, told)
        search.on_trial_complete(trial, told)
    assert isinstance(search.suggest("4"), dict)
    search.on_trial_complete("4", error=True)
    assert search._optuna is not None
    study = search._optuna._ot_study.get_trials()
    assert [trial.state.name for trial in study] == ["PRUNED", "PRUNED", "COMPLETE", "FAIL"]
    assert [trial.value for trial in study] == [0.04, 0.08, 0.16, None]


def test_optuna_draws_what_is_known_first_and_under_the_same_number() -> None:
    config = SearchConfig(method="bayes", samples=9)
    first = proposed(Proposals(RANGES, config, workload()), most=6)
    known = [
        Configuration(number=n, hash=identify(values_of(each)), values=values_of(each))
        for n, each in enumerate(first)
        if n != 3
    ]
    again = proposed(Proposals(RANGES, config, workload(), known))
    assert again[:5] == [each for each in first if each["number"] != 3]
    assert len({identify(values_of(each)) for each in again}) == 10
    # The number of what was lost is not given away: its folder may be there.
    assert [each["number"] for each in again[5:]] == [6, 7, 8, 9, 10]


def test_lists_and_switches_are_drawn_as_they_were_given() -> None:
    space: Space = {"a.y": Choices(([1, 2], [3, 4], None, True))}
    found = proposed(Proposals(space, SearchConfig(method="bayes", samples=4), workload()))
    assert all(each["a.y"] in ([1, 2], [3, 4], None, True) for each in found[1:])
    assert len(found) == 5


def test_two_metrics_are_maximised_each_by_itself() -> None:
    search = Proposals(
        RANGES, SearchConfig(method="bayes", samples=30), workload(separate=("AP", "HOTA"))
    )
    for n in range(31):
        each = search.suggest(str(n))
        assert isinstance(each, dict)
        x = each.get("a.x", 0.5)
        told = {"value": 0.5, "budget": 10, "metrics/AP": x, "metrics/HOTA": 1 - x}
        search.on_trial_complete(str(n), told)
    assert search._optuna is not None
    assert len(search._optuna._ot_study.best_trials) == 30  # none is worse in both


@pytest.mark.parametrize("method", ["grid", "random"])
def test_numbers_are_the_same_in_every_run(method: Any) -> None:
    space = GRID if method == "grid" else RANGES
    config = SearchConfig(method=method, samples=8)
    whole = proposed(Proposals(space, config, workload()))
    known = [Trial(number=2, hash=identify({"a.x": 0.1}), values={"a.x": 0.1}, budget=10,
                   value=0.1, metrics={})]  # fmt: skip
    assert proposed(Proposals(space, config, workload(), known)) == whole
