"""What a sweep has found: configurations, the trials of its ledger, and its report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """Values of the swept fields.

    number: in the order of the search; 0 is the base, the configuration without a sweep
    hash:   names the configuration by every field of it, also those that are not swept
    values: swept field -> value; {} for the base
    """

    number: int
    hash: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial(Configuration):
    """A configuration tried, with its outcome.

    budget: videos that it was scored on, or steps that it was trained for
    value:  of the objective
    folds:  the objective on all videos but those of each fold; [] where there are no folds
    """

    budget: int
    value: float
    metrics: dict[str, float]
    folds: list[float] = field(default_factory=list)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Trial:
        """The inverse of asdict; keys that are no field are ignored."""
        return cls(**{f.name: plain[f.name] for f in fields(cls) if f.name in plain})


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A configuration that was left out, and why."""

    values: dict[str, Any]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutFold:
    """One fold: its number of videos, and the values that were best on the other folds.

    value, base: of the objective on the fold's videos, with these values and without the sweep
    """

    videos: int
    value: float
    base: float
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutDifference:
    """The held-out value minus that of the base on the same draws of videos.

    interval: [low, high]
    better:   share of the draws in which it is above 0
    """

    value: float
    interval: list[float] | None
    better: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Cross-validation: the value of choosing, on videos that had no say in the choice.

    value:      of the objective, each fold scored with what was best on the others
    base:       of the objective without the sweep
    confidence: of the intervals [low, high] over draws of videos; None where no draw has truth
    """

    value: float
    base: float
    folds: list[HeldOutFold]
    confidence: float
    interval: list[float] | None
    base_interval: list[float] | None
    difference: HeldOutDifference


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepReport:
    """report.json of a sweep.

    budget: of a trial that was not stopped early
    unit:   of budgets: videos or steps
    best:   index of the best trial
    trials: the trial with the largest budget of each configuration, in the order of the search;
            the base is the first, listed with its own values of the swept fields
    notes:  what a reader has to know: fields without effect, why something is not there
    """

    objective: str
    budget: int
    unit: str
    best: int
    trials: list[Trial]
    held_out: HeldOut | None
    failed: list[Failure]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; trials without their folds."""
        names = ("number", "hash", "budget", "value", "metrics", "values")
        trials = [{name: getattr(trial, name) for name in names} for trial in self.trials]
        return asdict(self) | {"trials": trials}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SweepReport:
        """The inverse of to_dict."""
        held_out = plain["held_out"]
        if held_out is not None:
            folds = [HeldOutFold(**fold) for fold in held_out["folds"]]
            difference = HeldOutDifference(**held_out["difference"])
            held_out = HeldOut(**{**held_out, "folds": folds, "difference": difference})
        trials = [Trial.from_dict(trial) for trial in plain["trials"]]
        failed = [Failure(**failure) for failure in plain["failed"]]
        return cls(**{**plain, "trials": trials, "failed": failed, "held_out": held_out})
