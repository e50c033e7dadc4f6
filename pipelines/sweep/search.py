"""Which configuration to try next: grid, random or Bayesian search, with successive halving.

Knows nothing of Ray: workers ask `Search.next` for a job and tell `Search.tell` what came out. One
search serves any number of workers at once, and goes on from the results that an earlier run left.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipelines.sweep import space as search_space
from pipelines.sweep.space import Choices, Dimension, Space

ATTEMPTS: Final = 2
"""Times that a configuration may take its process with it before it is left out."""
_DRAWS: Final = 50  # tries at a combination that was not there before


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How a sweep searches."""

    method: Literal["grid", "random", "bayes"] = "grid"
    """grid: every combination of lists. random: drawn by themselves. bayes: drawn where the results
    so far are good (Optuna's tree-structured Parzen estimator)."""
    samples: int = 100
    """Configurations tried by random and bayes, besides the base; a grid has its own number."""
    objective: str = "AP"
    """What is maximised, see objective.parse."""
    folds: int = 5
    """Cross-validation: the videos are dealt into so many folds, and each fold is scored with what
    was best on the others; 0: no cross-validation."""
    halving: int = 0
    """Asynchronous successive halving (ASHA): configurations start on few videos (or steps of
    training), and the best of this many go on to this many times more; 0: all get everything."""
    first_rung: int = 8
    """Videos of the first rung of halving, at least; steps where a trial is a training."""
    seed: int = 0
    """Of draws, folds and the order in which videos join."""

    def __post_init__(self) -> None:
        for name in ("samples", "first_rung"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be 0 (none) or 2 and more, got {self.folds}")
        if self.halving < 0 or self.halving == 1:
            raise ValueError(f"halving must be 0 (off) or 2 and more, got {self.halving}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    def rungs(self, budget: int) -> tuple[int, ...]:
        """Videos or steps that a configuration is given, from its first rung to all of them."""
        found = [budget]
        while self.halving and found[0] // self.halving >= self.first_rung:
            found.insert(0, found[0] // self.halving)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is asked to do.

    number: of the configuration, in the order of the search; 0 is the base
    hash:   names the configuration
    values: field -> value
    budget: how many videos to score it on, or how many steps to train it for
    """

    number: int
    hash: str
    values: dict[str, Any]
    budget: int

    def row(
        self, value: float, metrics: dict[str, Any], folds: list[float], config_hash: str
    ) -> dict[str, Any]:
        """What came out of it, as the workers hand it back.

        value:       of the objective
        metrics:     of the videos it was scored on
        folds:       the objective without each fold; none where there were no folds
        config_hash: of the configuration that was really used
        """
        return {
            "number": self.number,
            "hash": self.hash,
            "values": self.values,
            "budget": self.budget,
            "value": value,
            "metrics": metrics,
            "folds": folds,
            "config_hash": config_hash,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a job: its number, hash, values, budget, and the objective's value."""

    number: int
    hash: str
    values: dict[str, Any]
    budget: int
    value: float


@dataclass(slots=True)
class Candidate:
    """A configuration and how far it has come.

    results:  budget -> value of the objective
    waiting:  budget of the job that a worker is at, or that waits to be done again
    attempts: times that its process died
    failed:   why it is left out
    """

    number: int
    hash: str
    values: dict[str, Any]
    results: dict[int, float] = field(default_factory=dict)
    waiting: int | None = None
    attempts: int = 0
    failed: str | None = None


class Search:
    """The state of one search. Not for several threads at once; Ray calls an actor one by one."""

    def __init__(
        self,
        space: Space,
        config: SearchConfig,
        budget: int,
        identify: Callable[[Mapping[str, Any]], str],
        known: Iterable[Outcome] = (),
    ) -> None:
        """Start, or go on.

        space:    field -> its values
        config:   how to search
        budget:   videos of the data set, or steps of a whole training
        identify: names the configuration with these values ({}: the base); raises ValueError for
                  values that do not go together
        known:    what an earlier run of the same search has found
        """
        self.config = config
        self.rungs = config.rungs(budget)
        self.candidates: dict[str, Candidate] = {}
        self.refused: dict[str, str] = {}
        self._space = space
        self._identify = identify
        self._leases: dict[str, Candidate] = {}
        self._again: list[Candidate] = []
        base = self._add(0, identify({}), {})
        for outcome in known:
            there = self.candidates.get(outcome.hash)
            found = there or self._add(outcome.number, outcome.hash, outcome.values)
            found.results[outcome.budget] = outcome.value
        if self.rungs[-1] not in base.results:
            base.waiting = self.rungs[-1]
            self._again.append(base)
        self._sequence = self._proposals()
        self._exhausted = False

    def enter(self, worker: str) -> None:
        """A worker starts, or starts anew: what it was at is to be done again."""
        lost = self._leases.pop(worker, None)
        if lost is None:
            return
        lost.attempts += 1
        if lost.attempts >= ATTEMPTS:
            self._leave_out(lost, f"its process died {lost.attempts} times")
        else:
            self._again.append(lost)

    def next(self, worker: str) -> Job | None:
        """The worker's next job; None: nothing now (see `over`)."""
        found = self._again.pop(0) if self._again else self._promoted() or self._proposed()
        if found is None:
            if self._exhausted and not self._leases:
                found = self._last_promoted()
            if found is None:
                return None
        assert found.waiting is not None
        self._leases[worker] = found
        return Job(found.number, found.hash, found.values, found.waiting)

    def tell(self, worker: str, value: float) -> None:
        """The worker has finished its job, with this value of the objective."""
        found = self._leases.pop(worker)
        assert found.waiting is not None
        found.results[found.waiting] = value
        found.waiting = None

    def fault(self, worker: str, reason: str) -> None:
        """The worker's job cannot be done: the configuration is left out."""
        self._leave_out(self._leases.pop(worker), reason)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do, also not once running jobs have ended."""
        return (
            self._exhausted
            and not (self._leases or self._again)
            and self._promotable() is None
            and self._last_promotable() is None
        )

    def failures(self) -> list[dict[str, Any]]:
        """What was left out, and why: {values, reason}."""
        failed = [c for c in self.candidates.values() if c.failed is not None]
        out = [{"values": c.values, "reason": c.failed} for c in failed]
        return out + [{"values": json.loads(v), "reason": r} for v, r in self.refused.items()]

    def _add(self, number: int, name: str, values: Mapping[str, Any]) -> Candidate:
        found = self.candidates[name] = Candidate(number, name, dict(values))
        return found

    def _leave_out(self, candidate: Candidate, reason: str) -> None:
        candidate.waiting, candidate.failed = None, reason

    # ---- proposals

    def _proposed(self) -> Candidate | None:
        """A new configuration for the first rung."""
        found = None if self._exhausted else next(self._sequence, None)
        self._exhausted = found is None
        if found is not None:
            found.waiting = self.rungs[0]
        return found

    def _proposals(self) -> Iterator[Candidate]:
        """New configurations in the order of the search; those that are known are passed over."""
        if self.config.method == "grid":
            # Every place of the grid counts, so that a number says which place it was.
            for number, values in enumerate(search_space.combinations(self._space), start=1):
                found = self._new(number, values)
                if found is not None:
                    yield found
            return
        while len(self.candidates) - 1 < self.config.samples:
            # The first that is free: a killed run may have left gaps.
            used = {c.number for c in self.candidates.values()}
            number = next(n for n in itertools.count(1) if n not in used)
            for attempt in range(_DRAWS):
                found = self._new(number, self._drawn(number, attempt))
                if found is not None:
                    break
            else:
                return  # a small space: all of it was tried
            yield found

    def _drawn(self, number: int, attempt: int) -> dict[str, Any]:
        if self.config.method == "bayes" and attempt == 0:
            return suggest(
                self._space,
                list(self.candidates.values()),
                self.rungs[-1],
                self.config.seed + number,
            )
        return search_space.draw(self._space, self.config.seed, number * _DRAWS + attempt)

    def _new(self, number: int, values: dict[str, Any]) -> Candidate | None:
        """The configuration with these values, unless it is known or refused."""
        try:
            name = self._identify(values)
        except ValueError as error:
            self.refused[json.dumps(values)] = str(error)
            return None
        return None if name in self.candidates else self._add(number, name, values)

    # ---- halving

    def _promoted(self) -> Candidate | None:
        return self._lift(self._promotable())

    def _last_promoted(self) -> Candidate | None:
        return self._lift(self._last_promotable())

    def _lift(self, found: tuple[Candidate, int] | None) -> Candidate | None:
        if found is None:
            return None
        candidate, rung = found
        candidate.waiting = self.rungs[rung]
        return candidate

    def _promotable(self) -> tuple[Candidate, int] | None:
        """A configuration among the best of its rung, and the rung it may go on to (ASHA)."""
        for rung in reversed(range(len(self.rungs) - 1)):
            ranked = self._ranked(rung)
            for candidate in ranked[: len(ranked) // self.config.halving]:
                if self._idle(candidate, rung):
                    return candidate, rung + 1
        return None

    def _last_promotable(self) -> tuple[Candidate, int] | None:
        """At the end, the best of the highest rung where no other has reached all videos."""
        if self._ranked(len(self.rungs) - 1):
            return None
        for rung in reversed(range(len(self.rungs) - 1)):
            for candidate in self._ranked(rung):
                if self._idle(candidate, rung):
                    return candidate, rung + 1
        return None

    def _ranked(self, rung: int) -> list[Candidate]:
        """What has a result at this rung, best first; the base is no competitor."""
        budget = self.rungs[rung]
        there = [c for c in self.candidates.values() if budget in c.results and c.number > 0]
        return sorted(there, key=lambda c: (-c.results[budget], c.number))

    def _idle(self, candidate: Candidate, rung: int) -> bool:
        return (
            candidate.waiting is None
            and candidate.failed is None
            and self.rungs[rung + 1] not in candidate.results
        )


def suggest(
    space: Space, candidates: Sequence[Candidate], budget: int, seed: int
) -> dict[str, Any]:
    """Where Optuna would look next, given all that is known: a pure function of its arguments.

    The study is made anew for every question, so that nothing is lost with a process, and what was
    stopped early counts by its last rung (Optuna's pruned trials).

    candidates: with results, being computed, or stopped
    budget:     the whole one; a result with less counts as stopped early
    seed:         another one for each question
    """
    optuna = _optuna()
    distributions = {key: _distribution(dimension) for key, dimension in space.items()}
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
    )
    for candidate in candidates:
        if candidate.values.keys() != space.keys():
            continue  # the base, whose values may lie outside the space
        study.add_trial(_past(optuna, candidate, distributions, budget))
    drawn = study.ask(distributions).params
    return {key: _meant(dimension, drawn[key]) for key, dimension in space.items()}


def _past(optuna: Any, candidate: Candidate, distributions: dict[str, Any], budget: int) -> Any:
    """A candidate as a trial of Optuna's."""
    states = optuna.trial.TrialState
    params = {key: _shown(value) for key, value in candidate.values.items()}
    common = {"params": params, "distributions": distributions}
    if candidate.failed is not None:
        return optuna.trial.create_trial(**common, state=states.FAIL)
    if not candidate.results:
        return optuna.trial.create_trial(**common, state=states.RUNNING)
    if budget in candidate.results:
        return optuna.trial.create_trial(**common, value=candidate.results[budget])
    return optuna.trial.create_trial(
        **common, state=states.PRUNED, intermediate_values=dict(candidate.results)
    )


def _distribution(dimension: Dimension) -> Any:
    optuna = _optuna()
    if isinstance(dimension, Choices):
        return optuna.distributions.CategoricalDistribution(
            [_shown(value) for value in dimension.values]
        )
    if dimension.integer:
        return optuna.distributions.IntDistribution(
            int(dimension.low), int(dimension.high), log=dimension.log
        )
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _shown(value: Any) -> Any:
    """Optuna's categories are simple values; a list of numbers goes as text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _meant(dimension: Dimension, drawn: Any) -> Any:
    """The value that Optuna's stands for, rounded as a random one is."""
    if isinstance(dimension, Choices):
        return next(v for v in dimension.values if _shown(v) == drawn)
    if dimension.integer:
        return int(drawn)
    return min(max(float(f"{drawn:.5g}"), dimension.low), dimension.high)


@functools.cache
def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
