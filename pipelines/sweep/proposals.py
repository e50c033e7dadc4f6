"""Which configuration comes next, as a search algorithm of Ray Tune.

Imported inside a session, for Ray reads its environment when it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from pipelines.storage.sweep_report import Configuration, Failure
from pipelines.sweep import space as search_space
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Choices, Dimension, Range, Space
from pipelines.sweep.workload import Workload

_DRAWS: Final = 50  # draws at most, until one is a configuration that was not tried before


class Proposals(Searcher):  # type: ignore[misc]
    """The base, then configurations of a grid, random draws, or Optuna's: each of them once.

    refused: values that do not go together, with the reason; they become no trial
    values:  those of every configuration that became a trial, by its number
    """

    def __init__(
        self,
        space: Space,
        settings: SearchConfig,
        workload: Workload,
        known: Sequence[Configuration] = (),
    ) -> None:
        """known: of earlier runs; Optuna draws them first of all"""
        super().__init__(metric="value", mode="max")
        self.refused: list[Failure] = []
        self.values: dict[int, dict[str, Any]] = {}
        self._workload, self._space, self._settings = workload, space, settings
        self._left = settings.planned(space)
        self._hashes: set[str] = set()
        self._numbers = {each.hash: each.number for each in known}
        self._grid = list(search_space.combinations(space)) if settings.method == "grid" else []
        self._place = 0  # in the grid, or number of the draw
        self._optuna: OptunaSearch | None = None
        if settings.method == "bayes":
            self._optuna = _optuna(space, settings.seed, workload.goal.separate, known)
        self._keys: dict[str, str] = {}  # trial of Tune -> that of Optuna

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The values and number of the next configuration; FINISHED: there is none."""
        for values in self._next(trial_id) if self._left else ():
            try:
                name = self._workload.identify(values)
            except ValueError as error:
                self.refused.append(Failure(values=values, reason=str(error)))
                name = ""
            if name and name not in self._hashes:
                self._hashes.add(name)
                self._left -= 1
                number = self._place - 1
                if self._optuna is not None and values:
                    following = max(self._numbers.values(), default=0) + 1
                    number = self._numbers.setdefault(name, following)
                self.values[number] = values
                return {**values, "number": number}
            self.on_trial_complete(trial_id, error=True)
        return str(Searcher.FINISHED)

    def _next(self, trial_id: str) -> Iterator[dict[str, Any]]:
        """Values to try, until they are taken."""
        if self._place == 0:
            self._place = 1
            yield {}
        if self._optuna is not None:
            for attempt in range(_DRAWS):
                self._keys[trial_id] = f"{trial_id}-{attempt}"
                yield _values(self._space, self._optuna.suggest(self._keys[trial_id]))
            return
        grid, seed = self._grid, self._settings.seed
        for place in range(self._place, len(grid) + 1 if grid else self._place + _DRAWS):
            self._place = place + 1  # also after what is refused: a number is a place
            yield grid[place - 1] if grid else search_space.draw(self._space, seed, place)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell Optuna the value at a rung."""
        if self._optuna is not None and trial_id in self._keys:
            self._optuna.on_trial_result(self._keys[trial_id], _named(result))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna the value; one with less than the whole budget as of a pruned trial."""
        if self._optuna is None or trial_id not in self._keys:
            return
        if result and result["budget"] < self._workload.rungs[-1]:
            self.on_trial_result(trial_id, result)
            result = None
        told = _named(result) if result else None
        self._optuna.on_trial_complete(self._keys[trial_id], told, error)

    def set_search_properties(self, *unused: Any, **also: Any) -> bool:
        """Nothing: the space is given to the constructor."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what a sweep goes on from."""

    restore = save


def _named(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of SweepTrial.step with its metrics as Optuna looks for them."""
    return {**result, **{f"metrics/{name}": value for name, value in result.get("metrics", ())}}


def _optuna(
    space: Space, seed: int, separate: Sequence[str], known: Sequence[Configuration]
) -> OptunaSearch:
    drawn = [each.values for each in known if each.number]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(
        {key: _distribution(dimension) for key, dimension in space.items()},
        metric=[f"metrics/{name}" for name in separate] or "value",
        mode=["max"] * len(separate) or "max",
        # Another seed for each run, or the draws of the last one would come again.
        sampler=optuna.samplers.TPESampler(
            seed=seed + len(drawn), multivariate=True, constant_liar=True
        ),
        points_to_evaluate=[{k: _category(v) for k, v in values.items()} for values in drawn],
    )


def _distribution(dimension: Dimension) -> Any:
    kinds = optuna.distributions
    if isinstance(dimension, Choices):
        return kinds.CategoricalDistribution([_category(value) for value in dimension.values])
    if dimension.integer:
        return kinds.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _category(value: Any) -> Any:
    """Optuna's categories are simple values: a list or mapping becomes text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _values(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna has drawn, as values of the space."""
    return {
        key: dimension.rounded(drawn[key])
        if isinstance(dimension, Range)
        else next(value for value in dimension.values if _category(value) == drawn[key])
        for key, dimension in space.items()
    }
