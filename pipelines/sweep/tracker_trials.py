"""A trial of a tracker sweep: a configuration scored on stored videos; and cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from idol.analysis import intervals
from idol.config import AnalysisConfig, Config, TrackerConfig
from idol.ytvis.truth import VideoTruth
from pipelines.storage.stored import StoredDetections
from pipelines.storage.sweep_report import (
    Configuration,
    HeldOut,
    HeldOutDifference,
    HeldOutFold,
    Trial,
)
from pipelines.sweep import objective, space, videos
from pipelines.sweep.objective import Objective
from pipelines.sweep.videos import MissedVideo, Scored, Videos
from pipelines.sweep.workers import hash_of


@dataclass(frozen=True, slots=True)
class TrackerTrials:
    """The workload of a tracker sweep (workers.Workload).

    source: stored detections
    truths: video_id -> truth without masks, of the videos that have detections
    missed: video_id -> the other videos
    order:  all video ids: a trial with less than the whole budget gets the first of them, and
            number n is in fold n modulo folds
    base:   the configuration whose fields the search replaces
    goal:   what is maximised
    folds:  of cross-validation, 0: none
    """

    source: StoredDetections
    truths: Mapping[int, VideoTruth]
    missed: Mapping[int, MissedVideo]
    order: Sequence[int]
    base: TrackerConfig
    goal: Objective
    folds: int

    unit: ClassVar[str] = "videos"
    cpus: ClassVar[float] = 1.0

    @property
    def budget(self) -> int:
        """Videos of the data set."""
        return len(self.order)

    def config(self, values: Mapping[str, Any]) -> TrackerConfig:
        """The tracker with these values. values: "tracker.field" -> value"""
        return space.applied(Config(tracker=self.base), values).tracker

    def identify(self, values: Mapping[str, Any]) -> str:
        """The hash of the configuration with these values.

        Raises: ValueError: the values do not go together, or ask for what was not stored.
        """
        config = self.config(values)
        if config.score_threshold < self.source.score_floor:
            raise ValueError(
                f"score_threshold {config.score_threshold:g} lies below the "
                f"{self.source.score_floor:g} that was stored"
            )
        return hash_of(config)

    def load(self) -> Videos:
        """The stored videos."""
        return videos.load(self.source, self.truths, self.missed)

    def measure(self, loaded: Videos, configuration: Configuration, budget: int) -> Trial:
        """Score a configuration on the first videos, as many as the budget says."""
        config = self.config(configuration.values)
        matches, counts = self._score(loaded, self.order[:budget], config)
        metrics = objective.stats(matches, counts)
        folds: list[float] = []
        if self.folds and budget == self.budget:
            without = self.goal.of_draws(matches, counts, fold_weights(self.order, self.folds))
            # NaN is no JSON; -1 stands for no truth, as in Objective.of.
            folds = np.where(np.isfinite(without), without, -1.0).tolist()
        return Trial(
            number=configuration.number,
            hash=hash_of(config),
            values=configuration.values,
            budget=budget,
            value=self.goal.of(metrics),
            metrics=metrics,
            folds=folds,
        )

    def held_out(self, full: Sequence[Trial]) -> HeldOut | None:
        """Cross-validation: each fold is scored with what was best on the others.

        The matches of all folds together make one value, beside that of the base on the same
        videos, with intervals over videos.

        full:    trials with the whole budget
        returns: None without folds, or where there are fewer than two videos for each
        """
        if not self.folds or self.budget < 2 * self.folds:
            return None
        loaded = self.load()
        reference = self._score(loaded, self.order, self.base)
        chosen: Scored = ([], [])
        folds = []
        for fold in range(self.folds):
            winner = _best_without(full, fold)
            own = slice(fold, None, self.folds)
            found = self._score(loaded, self.order[own], self.config(winner.values))
            chosen[0].extend(found[0])
            chosen[1].extend(found[1])
            folds.append(
                HeldOutFold(
                    videos=len(found[0]),
                    value=self._value(found),
                    base=self._value((reference[0][own], reference[1][own])),
                    values=space.without_section(winner.values),
                )
            )
        value, base = self._value(chosen), self._value(reference)
        analysis = AnalysisConfig()
        weights = intervals.draws(self.budget, analysis)
        draws, base_draws = (self.goal.of_draws(*part, weights) for part in (chosen, reference))
        difference = intervals.difference(draws, base_draws, value - base, analysis)
        return HeldOut(
            value=value,
            base=base,
            folds=folds,
            confidence=analysis.confidence,
            interval=_bounds(intervals.interval(draws, value, analysis)),
            base_interval=_bounds(intervals.interval(base_draws, base, analysis)),
            difference=HeldOutDifference(
                value=difference.value,
                interval=_bounds(difference.interval),
                better=difference.better,
            ),
        )

    def _score(self, loaded: Videos, chosen: Sequence[int], config: TrackerConfig) -> Scored:
        category_ids, tracking = self.source.category_ids, self.goal.tracking
        return videos.score(loaded, chosen, config, category_ids, tracking=tracking)

    def _value(self, scored: Scored) -> float:
        return self.goal.of(objective.stats(*scored))


def fold_weights(order: Sequence[int], folds: int) -> NDArray[np.int64]:
    """Which videos are outside each fold: (folds, V) 0 or 1, by ascending video ids.

    order: video ids; number n is in fold n modulo folds, so folds differ by at most one video
    """
    own = np.argsort(np.argsort(order))
    weights = np.ones((folds, len(order)), dtype=np.int64)
    weights[np.arange(len(order)) % folds, own] = 0
    return weights


def _best_without(full: Sequence[Trial], fold: int) -> Trial:
    """The best trial on the videos outside a fold, the first of equals."""
    return max(full, key=lambda trial: (trial.folds[fold], -trial.number))


def _bounds(interval: intervals.Interval | None) -> list[float] | None:
    return None if interval is None else list(astuple(interval))
