"""A trial of a tracker sweep: a configuration scored on stored videos; and cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar, Final

import numpy as np
import torch

from idol.analysis import intervals
from idol.arrays import Floats32
from idol.config import AnalysisConfig, Config, TrackerConfig, to_dict
from idol.evaluation.matching import VideoMatches, match_video
from idol.evaluation.stored_overlaps import VideoOverlaps
from idol.evaluation.tracking_metrics import VideoTracking, count_video
from idol.structures import FrameDetections
from idol.tracker.online import track_video
from idol.ytvis.truth import VideoTruth
from pipelines.storage import manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.stored import StoredDetections
from pipelines.storage.sweep_report import (
    Configuration,
    HeldOut,
    HeldOutDifference,
    HeldOutFold,
    Trial,
)
from pipelines.sweep import objective, space
from pipelines.sweep.objective import Objective

_ARRAYS: Final = ("scores", "class_scores", "embeddings", "overlaps", "boxes")


@dataclass(frozen=True, slots=True)
class LoadedVideo:
    """All that tracking and scoring need of a video with detections.

    Ray lays arrays into memory that all processes of a machine share, but copies tensors to each.

    rows: the arrays of each frame, in the order of _ARRAYS
    """

    rows: list[list[Floats32]]
    overlaps: VideoOverlaps

    @classmethod
    def of(cls, frames: Iterable[FrameDetections], overlaps: VideoOverlaps) -> LoadedVideo:
        """From the frames of a video, in order."""
        rows = [[getattr(frame, name).numpy() for name in _ARRAYS] for frame in frames]
        return cls(rows, overlaps)

    def frames(self) -> Iterator[FrameDetections]:
        """The frames, as views of the arrays."""
        with warnings.catch_warnings():  # torch warns that nobody must write to shared memory
            warnings.filterwarnings("ignore", ".*not writable")
            for index, arrays in enumerate(self.rows):
                scores, classes, embeddings, overlaps, boxes = map(torch.from_numpy, arrays)
                yield FrameDetections(index, scores, classes, embeddings, overlaps, boxes)


@dataclass(frozen=True, slots=True)
class MissedVideo:
    """A video with truth but without detections: its score where nothing is found in it."""

    matches: VideoMatches
    counts: VideoTracking

    @classmethod
    def of(cls, truth: VideoTruth) -> MissedVideo:
        """Score no track against this truth, which needs its masks."""
        return cls(match_video([], truth), count_video([], truth))


Videos = Mapping[int, LoadedVideo | MissedVideo]
"""video_id -> video, for every video with truth."""
Scored = tuple[list[VideoMatches], list[VideoTracking]]
"""Matches of videos, and their counts for the tracking metrics: [] where these were not asked."""


@dataclass(frozen=True, slots=True)
class TrackerTrials:
    """The workload of a tracker sweep.

    source: stored detections
    truths: video_id -> truth without masks, of the videos that have detections
    missed: video_id -> the other videos
    order:  all video ids: a trial with less than the whole budget gets the first of them, and
            number n is in fold n modulo folds
    base:   the configuration whose fields the search replaces
    goal:   what is maximised
    rungs:  numbers of videos that a configuration passes through, the last of which is all
    folds:  of cross-validation, 0: none
    """

    source: StoredDetections
    truths: Mapping[int, VideoTruth]
    missed: Mapping[int, MissedVideo]
    order: Sequence[int]
    base: TrackerConfig
    goal: Objective
    rungs: Sequence[int]
    folds: int

    unit: ClassVar[str] = "videos"
    cpus: ClassVar[float] = 1.0
    place: ClassVar[None] = None

    @property
    def reads(self) -> Sequence[AnyPath]:
        """The stored detections."""
        return (self.source.path,)

    def config(self, values: Mapping[str, Any]) -> TrackerConfig:
        """The tracker with the values of {"tracker.field": value}."""
        return space.applied(Config(tracker=self.base), values).tracker

    def identify(self, values: Mapping[str, Any]) -> str:
        """The hash of these values; ValueError: they clash, or ask for what was not stored."""
        config = self.config(values)
        if config.score_threshold < self.source.score_floor:
            raise ValueError(
                f"tracker.score_threshold={config.score_threshold:g} lies below the score floor of "
                f"{self.source.score_floor:g}, and detections below it were not stored; evaluate "
                f"again with --set detect.score_floor={config.score_threshold:g} to sweep it"
            )
        return manifest.hash_value(to_dict(config))

    def load(self) -> Videos:
        """All videos, with their stored detections and overlaps."""
        stored = {video.video_id: video for video in self.source.videos}
        found = {
            video_id: LoadedVideo.of(
                self.source.frames(stored[video_id]),
                VideoOverlaps.read(self.source.overlaps(stored[video_id]), truth),
            )
            for video_id, truth in self.truths.items()
        }
        return {**found, **self.missed}

    def measure(self, loaded: Videos, of: Configuration, after: int) -> Iterator[Trial]:
        """Score a configuration on more and more videos, each of them once."""
        config = self.config(of.values)
        scored: Scored = ([], [])
        for budget in self.rungs if of.number else self.rungs[-1:]:
            new = self.score(loaded, self.order[len(scored[0]) : budget], config)
            scored[0].extend(new[0])
            scored[1].extend(new[1])
            if budget > after:
                yield self._trial(scored, of, config)

    def _trial(self, scored: Scored, of: Configuration, config: TrackerConfig) -> Trial:
        matches, counts = scored
        budget, metrics, folds = len(matches), objective.stats(*scored), []
        if self.folds and budget == len(self.order):
            # Which videos are outside each fold: (folds, V) 0 or 1, by ascending ids.
            outside = np.ones((self.folds, budget), dtype=np.int64)
            outside[np.arange(budget) % self.folds, np.argsort(np.argsort(self.order))] = 0
            without = self.goal.of_draws(matches, counts, outside)
            # NaN is no JSON; -1 stands for no truth, as in Objective.of.
            folds = np.where(np.isfinite(without), without, -1.0).tolist()
        return Trial(
            number=of.number,
            hash=manifest.hash_value(to_dict(config)),
            values=of.values,
            budget=budget,
            value=self.goal.of(metrics),
            metrics=metrics,
            folds=folds,
        )

    def held_out(self, full: Sequence[Trial]) -> HeldOut | None:
        """Cross-validation: each fold is scored with what was best on the others.

        The matches of all folds together make one value, beside that of the base on the same
        videos, with intervals over videos. None where there are fewer than two videos for a fold.
        """
        if not self.folds or len(self.order) < 2 * self.folds:
            return None
        loaded = self.load()
        reference = self.score(loaded, self.order, self.base)
        chosen: Scored = ([], [])
        folds = []
        for fold in range(self.folds):
            winner = _best_without(full, fold)
            own = slice(fold, None, self.folds)
            found = self.score(loaded, self.order[own], self.config(winner.values))
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
        value, base, analysis = self._value(chosen), self._value(reference), AnalysisConfig()
        weights = intervals.draws(len(self.order), analysis)
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

    def score(self, loaded: Videos, chosen: Sequence[int], config: TrackerConfig) -> Scored:
        """Track and match the chosen videos: arithmetic on small arrays."""
        matches: list[VideoMatches] = []
        counts: list[VideoTracking] = []
        known = self.source.category_ids
        for video in (loaded[video_id] for video_id in chosen):
            if isinstance(video, MissedVideo):
                matches.append(video.matches)
                counts.append(video.counts)
                continue
            tracks = track_video(video.frames(), config)
            matches.append(video.overlaps.matches(tracks, known, config))
            if self.goal.tracking:
                counts.append(video.overlaps.tracking(tracks, known, config))
        return matches, counts if self.goal.tracking else []

    def _value(self, scored: Scored) -> float:
        return self.goal.of(objective.stats(*scored))


def _best_without(full: Sequence[Trial], fold: int) -> Trial:
    """The best trial on the videos outside a fold, the first of equals."""
    return max(full, key=lambda trial: (trial.folds[fold], -trial.number))


def _bounds(interval: intervals.Interval | None) -> list[float] | None:
    return None if interval is None else list(astuple(interval))
