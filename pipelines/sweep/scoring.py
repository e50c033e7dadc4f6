"""Stored videos, scored with one tracker configuration after another; folds and held-out scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idol.analysis import intervals
from idol.config import AnalysisConfig, TrackerConfig
from idol.evaluation import average_precision, tracking_metrics
from idol.evaluation.matching import VideoMatches
from idol.evaluation.stored_overlaps import VideoOverlaps
from idol.evaluation.tracking_metrics import VideoTracking
from idol.structures import FrameDetections
from idol.tracker.online import track_video
from idol.ytvis.truth import VideoTruth
from pipelines.storage.stored import StoredDetections
from pipelines.sweep import objective as objectives
from pipelines.sweep.objective import Objective


@dataclass(frozen=True, slots=True)
class LoadedVideo:
    """All that tracking and scoring need of one video, in memory."""

    frames: list[FrameDetections]
    overlaps: VideoOverlaps


@dataclass(frozen=True, slots=True)
class MissedVideo:
    """A video with truth but without detections: what finding nothing in it scores."""

    matches: VideoMatches
    counts: VideoTracking

    @classmethod
    def of(cls, truth: VideoTruth) -> MissedVideo:
        """Score nothing against this truth, which needs its masks."""
        return cls(
            average_precision.match_video([], truth), tracking_metrics.count_video([], truth)
        )


Videos = Mapping[int, LoadedVideo | MissedVideo]
"""video_id -> video, for every video with truth."""


def load(
    source: StoredDetections,
    truths: Mapping[int, VideoTruth],
    missed: Mapping[int, MissedVideo],
    order: Sequence[int],
) -> dict[int, LoadedVideo | MissedVideo]:
    """Read the stored detections and overlaps of these videos.

    truths: of the videos that have detections
    missed: the others
    order:  video ids
    """
    stored = {video.video_id: video for video in source.videos}
    found: dict[int, LoadedVideo | MissedVideo] = {}
    for video_id in order:
        if video_id in missed:
            found[video_id] = missed[video_id]
            continue
        video = stored[video_id]
        found[video_id] = LoadedVideo(
            list(source.frames(video)),
            VideoOverlaps.read(source.overlaps(video), truths[video_id]),
        )
    return found


def order_of(video_ids: Sequence[int], seed: int) -> list[int]:
    """The order in which videos join a search by halving, and are dealt into folds."""
    rng = np.random.default_rng([seed, 1])
    return [int(i) for i in rng.permutation(sorted(video_ids))]


def score(
    videos: Videos,
    chosen: Sequence[int],
    config: TrackerConfig,
    category_ids: Sequence[int],
    *,
    tracking: bool = False,
) -> tuple[list[VideoMatches], list[VideoTracking]]:
    """Track and match videos with one configuration: arithmetic on small arrays.

    chosen:   ids of the videos, whose order the results have
    tracking: count for the tracking metrics too
    returns:  matches, and counts ([] without tracking)
    """
    matches: list[VideoMatches] = []
    counts: list[VideoTracking] = []
    for video_id in chosen:
        video = videos[video_id]
        if isinstance(video, MissedVideo):
            matches.append(video.matches)
            counts.append(video.counts)
            continue
        tracks = track_video(video.frames, config)
        matches.append(video.overlaps.matches(tracks, category_ids, config))
        if tracking:
            counts.append(video.overlaps.tracking(tracks, category_ids, config))
    return matches, counts if tracking else []


def fold_weights(order: Sequence[int], folds: int) -> NDArray[np.int64]:
    """Which videos every fold leaves: (folds, V) 0 for its own videos, in order of ascending ids.

    order: video ids; they are dealt out one by one, so that folds differ by at most one video
    """
    fold = {video_id: n % folds for n, video_id in enumerate(order)}
    own = np.array([fold[video_id] for video_id in sorted(order)])
    weights: NDArray[np.int64] = (np.arange(folds)[:, None] != own).astype(np.int64)
    return weights


def without_folds(
    matches: Sequence[VideoMatches],
    counts: Sequence[VideoTracking],
    objective: Objective,
    weights: NDArray[np.int64],
) -> list[float]:
    """The objective on all videos but those of each fold; -1 where nothing is left to find."""
    values = objective.of_draws(matches, counts, weights)
    return [float(v) for v in np.where(np.isfinite(values), values, -1.0)]


def held_out(
    videos: Videos,
    order: Sequence[int],
    winners: Sequence[TrackerConfig],
    base: TrackerConfig,
    objective: Objective,
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """What choosing is worth on videos that had no say in the choice.

    Every fold's videos are scored with what was best on the others; their matches together make one
    score, beside that of the base on the same videos, with intervals over videos.

    order:    video ids, as of fold_weights
    winners:  the best configuration on the videos outside each fold
    returns:  value and interval of the choice, of the base, and of the difference; plain JSON types
    """
    folds = len(winners)
    matches: list[VideoMatches] = []
    counts: list[VideoTracking] = []
    per_fold = []
    reference = score(videos, order, base, category_ids, tracking=objective.tracking)
    for fold, config in enumerate(winners):
        own = list(range(fold, len(order), folds))
        found = score(
            videos, [order[i] for i in own], config, category_ids, tracking=objective.tracking
        )
        matches += found[0]
        counts += found[1]
        same = [reference[0][i] for i in own], [reference[1][i] for i in own if reference[1]]
        per_fold.append(
            {
                "videos": len(own),
                "value": objective.of(objectives.stats(*found)),
                "base": objective.of(objectives.stats(*same)),
            }
        )
    analysis = AnalysisConfig()
    value = objective.of(objectives.stats(matches, counts))
    base_value = objective.of(objectives.stats(*reference))
    result: dict[str, Any] = {"value": value, "base": base_value, "folds": per_fold}
    if len(order) < 2:
        return result
    weights = intervals.draws(len(order), analysis)
    chosen_draws = objective.of_draws(matches, counts, weights)
    base_draws = objective.of_draws(*reference, weights)
    difference = intervals.difference(chosen_draws, base_draws, value - base_value, analysis)
    return result | {
        "confidence": analysis.confidence,
        "interval": _bounds(intervals.interval(chosen_draws, value, analysis)),
        "base_interval": _bounds(intervals.interval(base_draws, base_value, analysis)),
        "difference": {
            "value": difference.value,
            "interval": _bounds(difference.interval),
            "better": difference.better,
        },
    }


def _bounds(interval: intervals.Interval | None) -> list[float] | None:
    return None if interval is None else list(asdict(interval).values())
