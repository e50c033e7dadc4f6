"""Which configuration to try next: grid, random or Bayesian search, with successive halving.

Without Ray: workers ask `Search.next` for a configuration and tell `Search.tell` its value. One
search serves any number of workers, and goes on from the trials of an earlier run.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipelines.storage.sweep_report import Configuration, Failure, Trial
from pipelines.sweep import space as search_space
from pipelines.sweep.space import Choices, Dimension, Range, Space

DEATHS: Final = 2
"""A configuration is left out once its process has died so many times."""
_DRAWS: Final = 50  # draws at most, until one is a configuration that was not tried before


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How a sweep searches."""

    method: Literal["grid", "random", "bayes"] = "grid"
    """grid: every combination of lists. random: independent draws. bayes: draws near the best
    values so far (Optuna's tree-structured Parzen estimator)."""
    samples: int = 100
    """Configurations that random and bayes try besides the base; a grid has its own number."""
    objective: str = "AP"
    """What is maximised, see objective.parse."""
    folds: int = 5
    """Cross-validation: number of parts of the videos, each scored with what was best on the other
    parts; 0: no cross-validation."""
    halving: int = 0
    """Asynchronous successive halving (ASHA): a configuration starts on few videos (or steps of
    training); the best 1 / halving of them get halving times as many; 0: all get everything."""
    first_rung: int = 8
    """Lower limit of the videos of the first rung; of steps where a trial is a training."""
    seed: int = 0
    """Of draws, of folds, and of the order of the videos in halving."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("first_rung", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name, off in (("folds", "none"), ("halving", "off")):
            if (value := getattr(self, name)) < 0 or value == 1:
                raise ValueError(f"{name} must be 0 ({off}) or 2 and more, got {value}")

    def planned(self, space: Space) -> int:
        """Number of configurations, with the base.

        Raises: ValueError: a grid over a range.
        """
        if self.method != "grid":
            return self.samples + 1
        return 1 + sum(1 for _ in search_space.combinations(space))

    def rungs(self, budget: int) -> tuple[int, ...]:
        """Budgets that a configuration passes through, the last of which is the whole budget."""
        found = [budget]
        while self.halving and found[0] // self.halving >= self.first_rung:
            found.insert(0, found[0] // self.halving)
        return tuple(found)


@dataclass(slots=True)
class Progress:
    """How far a configuration has come.

    results: budget -> value of the objective
    busy:    whether a worker tries it, or it is to be tried again
    deaths:  times that its process died
    failed:  why it is left out
    """

    configuration: Configuration
    results: dict[int, float] = field(default_factory=dict)
    busy: bool = False
    deaths: int = 0
    failed: str | None = None


class Search:
    """The state of one search. Not for several threads: a Ray actor serves one call at a time."""

    def __init__(
        self,
        space: Space,
        config: SearchConfig,
        budget: int,
        identify: Callable[[Mapping[str, Any]], str],
        known: Iterable[Trial] = (),
    ) -> None:
        """Start, or go on.

        budget:   videos of the data set, or steps of a whole training
        identify: gives the hash of the configuration with these values ({}: the base); raises
                  ValueError for values that do not go together
        known:    trials of an earlier run of the same search
        """
        self.config = config
        self.rungs = config.rungs(budget)
        self.progress: dict[str, Progress] = {}
        self._space = space
        self._identify = identify
        self._refused: dict[str, str] = {}
        self._at_work: dict[str, tuple[Progress, int]] = {}
        self._again: list[tuple[Progress, int]] = []
        base = self._known(0, identify({}), {})
        for trial in known:
            found = self._known(trial.number, trial.hash, trial.values)
            found.results[trial.budget] = trial.value
        if self.rungs[-1] not in base.results:
            self._again.append((base, self.rungs[-1]))
        self._sequence = self._proposals()
        self._exhausted = False

    def enter(self, worker: str) -> None:
        """A worker starts, or starts again: the configuration it had is to be tried again."""
        if worker not in self._at_work:
            return
        lost, budget = self._at_work.pop(worker)
        lost.deaths += 1
        if lost.deaths >= DEATHS:
            lost.failed = f"its process died {lost.deaths} times"
        else:
            self._again.append((lost, budget))

    def next(self, worker: str) -> tuple[Configuration, int] | None:
        """What the worker should try, and its budget; None: nothing at present (see `over`)."""
        found = self._again.pop(0) if self._again else self._promotable() or self._proposed()
        if found is None and self._exhausted and not self._at_work:
            found = self._promotable(at_the_end=True)
        if found is None:
            return None
        progress, budget = self._at_work[worker] = found
        progress.busy = True
        return progress.configuration, budget

    def tell(self, worker: str, value: float) -> None:
        """The worker's configuration has this value of the objective."""
        progress, budget = self._at_work.pop(worker)
        progress.results[budget] = value
        progress.busy = False

    def fault(self, worker: str, reason: str) -> None:
        """The worker's configuration cannot be tried: it is left out."""
        self._at_work.pop(worker)[0].failed = reason

    def exchange(
        self, worker: str, value: float | None
    ) -> tuple[tuple[Configuration, int] | None, bool]:
        """`tell` the value where there is one, then `next`; and whether the search is over."""
        if value is not None:
            self.tell(worker, value)
        asked = self.next(worker)
        return asked, asked is None and self.over

    @property
    def over(self) -> bool:
        """Whether nothing is being tried, and nothing is left to try."""
        return (
            self._exhausted
            and not (self._at_work or self._again)
            and self._promotable() is None
            and self._promotable(at_the_end=True) is None
        )

    def failures(self) -> list[Failure]:
        """What was left out, and why."""
        failed = [p for p in self.progress.values() if p.failed is not None]
        return [
            *(Failure(values=p.configuration.values, reason=str(p.failed)) for p in failed),
            *(Failure(values=json.loads(v), reason=r) for v, r in self._refused.items()),
        ]

    def _known(self, number: int, name: str, values: dict[str, Any]) -> Progress:
        """The configuration with this hash, added where it is new."""
        new = Progress(Configuration(number=number, hash=name, values=values))
        return self.progress.setdefault(name, new)

    def _proposed(self) -> tuple[Progress, int] | None:
        """A new configuration for the first rung."""
        found = None if self._exhausted else next(self._sequence, None)
        self._exhausted = found is None
        return None if found is None else (found, self.rungs[0])

    def _proposals(self) -> Iterator[Progress]:
        """New configurations in the order of the search, without those that are known."""
        if self.config.method == "grid":
            # Known and refused combinations are numbered too: a number is a place of the grid.
            for number, values in enumerate(search_space.combinations(self._space), start=1):
                if (found := self._new(number, values)) is not None:
                    yield found
            return
        while len(self.progress) - 1 < self.config.samples:
            # The first that is free: a killed run may have left gaps.
            used = {p.configuration.number for p in self.progress.values()}
            number = next(n for n in itertools.count(1) if n not in used)
            draws = (self._new(number, self._drawn(number, attempt)) for attempt in range(_DRAWS))
            found = next((new for new in draws if new is not None), None)
            if found is None:
                return  # a small space, all of which was tried
            yield found

    def _drawn(self, number: int, attempt: int) -> dict[str, Any]:
        if self.config.method == "bayes" and attempt == 0:
            known = list(self.progress.values())
            return suggest(self._space, known, self.rungs[-1], self.config.seed + number)
        return search_space.draw(self._space, self.config.seed, number * _DRAWS + attempt)

    def _new(self, number: int, values: dict[str, Any]) -> Progress | None:
        """The configuration with these values, unless it is known or refused."""
        try:
            name = self._identify(values)
        except ValueError as error:
            self._refused[json.dumps(values)] = str(error)
            return None
        return None if name in self.progress else self._known(number, name, values)

    def _promotable(self, *, at_the_end: bool = False) -> tuple[Progress, int] | None:
        """A configuration among the best of its rung, and its next budget (ASHA).

        at_the_end: the best of the highest rung, unless one has had the whole budget
        """
        if at_the_end and self._ranked(self.rungs[-1]):
            return None
        for budget, following in reversed([*itertools.pairwise(self.rungs)]):
            ranked = self._ranked(budget)
            for progress in ranked[: None if at_the_end else len(ranked) // self.config.halving]:
                left_out = progress.failed is not None
                if not (progress.busy or left_out or following in progress.results):
                    return progress, following
        return None

    def _ranked(self, budget: int) -> list[Progress]:
        """What has a value at this budget, best first; the base does not take part."""
        competing = (p for p in self.progress.values() if p.configuration.number > 0)
        there = (p for p in competing if budget in p.results)
        return sorted(there, key=lambda p: (-p.results[budget], p.configuration.number))


def suggest(space: Space, known: Sequence[Progress], budget: int, seed: int) -> dict[str, Any]:
    """Values that Optuna would try next: a pure function of its arguments.

    The study is made again for every question, so a killed process loses nothing.

    known:  configurations with results, at work, or left out
    budget: the whole one; with less a configuration is one of Optuna's pruned trials
    seed:   another one for each question
    """
    optuna = _optuna()
    distributions = {key: _distribution(dimension) for key, dimension in space.items()}
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
    )
    for progress in known:
        if progress.configuration.values.keys() != space.keys():
            continue  # the base, whose values may lie outside the space
        params = {key: _category(value) for key, value in progress.configuration.values.items()}
        outcome = _outcome(progress, budget)
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, **outcome)
        )
    drawn = study.ask(distributions).params
    return {
        key: dimension.rounded(drawn[key])
        if isinstance(dimension, Range)
        else next(value for value in dimension.values if _category(value) == drawn[key])
        for key, dimension in space.items()
    }


def _outcome(progress: Progress, budget: int) -> dict[str, Any]:
    """State and values as Optuna's create_trial takes them."""
    states = _optuna().trial.TrialState
    if progress.failed is not None:
        return {"state": states.FAIL}
    if not progress.results:
        return {"state": states.RUNNING}
    if budget in progress.results:
        return {"value": progress.results[budget]}
    return {"state": states.PRUNED, "intermediate_values": dict(progress.results)}


def _distribution(dimension: Dimension) -> Any:
    kinds = _optuna().distributions
    if isinstance(dimension, Choices):
        return kinds.CategoricalDistribution([_category(value) for value in dimension.values])
    if dimension.integer:
        return kinds.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _category(value: Any) -> Any:
    """Optuna's categories are simple values: a list or mapping becomes text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


@functools.cache
def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
