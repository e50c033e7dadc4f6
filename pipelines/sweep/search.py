"""How a sweep searches: in what order configurations come, what each may spend, what is best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.sweep import space as search_space
from pipelines.sweep.space import Space


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
    scheduler: Literal["fifo", "asha"] = "fifo"
    """fifo: every configuration gets everything. asha (asynchronous successive halving): it starts
    on few videos, or steps of training, and goes on only while it is among the best."""
    grace_period: int = 8
    """Videos, or steps, of the first rung of asha: every configuration gets so many."""
    reduction_factor: int = 3
    """A rung of asha is this many times the one before, and the best 1 / factor go on to it."""
    seed: int = 0
    """Of draws, of folds, and of the order of the videos in asha."""

    def __post_init__(self) -> None:
        least = {"samples": 1, "grace_period": 1, "reduction_factor": 2, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be {low} or more, got {getattr(self, name)}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be 0 (none) or 2 and more, got {self.folds}")

    def planned(self, space: Space) -> int:
        """Number of configurations, with the base.

        Raises: ValueError: a grid over a range.
        """
        if self.method != "grid":
            return self.samples + 1
        return 1 + sum(1 for _ in search_space.combinations(space))

    def rungs(self, budget: int) -> tuple[int, ...]:
        """Budgets that a configuration passes through, the last of which is the whole budget."""
        if self.scheduler == "fifo":
            return (budget,)
        found = [self.grace_period]
        while found[-1] < budget:
            found.append(found[-1] * self.reduction_factor)
        return (*found[:-1], budget)
