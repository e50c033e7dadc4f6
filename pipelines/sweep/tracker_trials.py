"""A trial of a tracker: its configuration, scored on stored videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idol.config import Config, TrackerConfig, to_dict
from idol.ytvis.truth import VideoTruth
from pipelines.storage import manifest
from pipelines.storage.stored import StoredDetections
from pipelines.sweep import objective, scoring, space
from pipelines.sweep.objective import Objective
from pipelines.sweep.scoring import MissedVideo, Videos
from pipelines.sweep.search import Job


@dataclass(frozen=True, slots=True)
class TrackerTrials:
    """The workload of a tracker sweep (sweep_workers.Workload).

    source: stored detections
    truths: video_id -> truth without masks, of the videos that have detections
    missed: video_id -> the others
    order:  all video ids, in the order in which they join
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

    @property
    def budget(self) -> int:
        """Videos of the data set."""
        return len(self.order)

    @property
    def cpus(self) -> float:
        """One process, one core."""
        return 1.0

    def config(self, values: Mapping[str, Any]) -> TrackerConfig:
        """The tracker with these values. values: "tracker.field" -> value"""
        return space.applied(Config(tracker=self.base), values).tracker

    def identify(self, values: Mapping[str, Any]) -> str:
        """Names the configuration with these values by every field of it.

        Errors: ValueError for values that do not go together, or ask for what was not stored
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
        return scoring.load(self.source, self.truths, self.missed, self.order)

    def measure(self, loaded: Videos, job: Job) -> dict[str, Any]:
        """Score one configuration: its row of the ledger, and the hash of what was really used."""
        config = self.config(job.values)
        chosen = self.order[: job.budget]
        matches, counts = scoring.score(
            loaded, chosen, config, self.source.category_ids, tracking=self.goal.tracking
        )
        metrics = objective.stats(matches, counts)
        folds: list[float] = []
        if self.folds and job.budget == len(self.order):
            weights = scoring.fold_weights(self.order, self.folds)
            folds = scoring.without_folds(matches, counts, self.goal, weights)
        return job.row(self.goal.of(metrics), metrics, folds, hash_of(config))


def hash_of(config: TrackerConfig) -> str:
    """Names a tracker configuration by every field of it."""
    return manifest.hash_value(to_dict(config))
