"""Confidence intervals of metrics: draw the videos again, for one method or between two.

A data set has few videos, and AP differs much between them. Drawing as many videos with
replacement (the bootstrap) and scoring each draw shows how far a metric moves by the choice of
videos alone. Matches are per video, so a draw is a weight for each video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from idol.analysis.cores import usable_cores
from idol.arrays import Bools, Floats, Ints
from idol.config import AnalysisConfig
from idol.evaluation.average_precision import RECALL_POINTS, summarise
from idol.evaluation.matching import IOU_THRESHOLDS, MAX_DETECTIONS, VideoMatches
from idol.evaluation.overlaps import ratio

STATS = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
"""What draws are scored by, besides AP within each range of sizes or occlusion."""

_AT_ONCE = 1 << 22  # numbers of a block of draws; larger ones leave the cache
_TOGETHER = 64  # draws that a thread takes at least, for most of their time is the same for all


@dataclass(frozen=True, slots=True)
class Interval:
    """How far the given share of the draws lies below and above their median, around the score."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One method minus another, on the same draws.

    value:  on the videos as they are
    better: share of the draws in which the first is better, equal ones counted by half
    """

    value: float
    interval: Interval
    better: float


def draws(num_videos: int, config: AnalysisConfig) -> Ints:
    """How often each video is drawn: (resamples, num_videos), every row sums to num_videos."""
    rng = np.random.default_rng(config.seed)
    return rng.multinomial(num_videos, np.full(num_videos, 1 / num_videos), config.resamples)


def scores_of_draws(
    matches: Sequence[VideoMatches],
    weights: Ints,
    *,
    only: Collection[str] | None = None,
) -> dict[str, Floats]:
    """The scores of every draw, as `evaluation.summarise` has them for a video's worth of copies.

    weights: (B, V) how often a draw has each video, in the order of ascending video ids
    only:    the scores that are needed; others may be left out
    returns: AP, AP50, AP75, AR1, AR10, AR100, and AP by range (APs, ..., AP_ho) -> (B,); NaN where
             a draw has no instance to find. Copies of a video stand side by side among equal scores
    """
    videos = sorted(matches, key=lambda m: m.video_id)
    if not videos or weights.shape[1] != len(videos):
        raise ValueError(
            f"weights must have one column for each of {len(videos)} videos, got {weights.shape}"
        )
    per_class: Counter[int] = Counter()
    for match in videos:
        per_class.update({category_id: len(scores) for category_id, scores in match.scores.items()})
    cores = usable_cores()
    block = max(1, _AT_ONCE // max(len(videos), *per_class.values(), 1))
    # A few draws cost what one does, and are not worth a second thread.
    block = min(block, max(_TOGETHER, -(-len(weights) // cores)))
    blocks = [weights[first : first + block] for first in range(0, len(weights), block)]
    # Sums of whole numbers, so any cut gives the same; numpy lets threads run side by side.
    with ThreadPoolExecutor(cores) as pool:
        parts = list(pool.map(lambda some: _block(videos, some.astype(np.float64), only), blocks))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _block(
    videos: Sequence[VideoMatches], weights: Floats, only: Collection[str] | None
) -> dict[str, Floats]:
    """As scores_of_draws, for some of the draws."""
    ranges, num_draws = videos[0].ranges, len(weights)
    occlusion = {"slight": "AP_so", "moderate": "AP_mo", "heavy": "AP_ho"}
    names = ["AP", *[occlusion.get(name, f"AP{name[0]}") for name in ranges[1:]]]
    # All of those over the first range are made together.
    needed = [s for s, name in enumerate(names) if only is None or s == 0 or name in only]
    at = {round(float(threshold) * 100): t for t, threshold in enumerate(IOU_THRESHOLDS)}
    # Sums over classes with an instance in the draw, and the number of such classes.
    precision = np.zeros((len(ranges), len(IOU_THRESHOLDS), num_draws))
    recall = np.zeros((len(MAX_DETECTIONS), num_draws))
    classes = np.zeros((len(ranges), num_draws))
    for category_id in videos[0].categories:
        truths = np.zeros((len(videos), len(ranges)))
        for v, match in enumerate(videos):
            if category_id in match.num_truth:
                truths[v] = match.num_truth[category_id]
        wanted = (weights @ truths).T
        classes += wanted > 0
        having = [v for v, match in enumerate(videos) if category_id in match.scores]
        if not having or not truths.any():
            continue
        of_class = [videos[v] for v in having]
        scores = np.concatenate([m.scores[category_id] for m in of_class])
        owner = np.repeat(np.arange(len(having)), [len(m.scores[category_id]) for m in of_class])
        order = np.argsort(-scores, kind="stable")
        matched = np.concatenate([m.matched[category_id] for m in of_class], axis=2)
        ignored = np.concatenate([m.ignored[category_id] for m in of_class], axis=2)
        drawn = weights[:, having]
        for s in (s for s in needed if truths[:, s].any()):
            for t in range(len(IOU_THRESHOLDS)):
                right = (matched[s, t] & ~ignored[s, t])[order]
                wrong = (~matched[s, t] & ~ignored[s, t])[order]
                precision[s, t] += _average_precision(right, wrong, owner[order], drawn, wanted[s])
        for a, limit in enumerate(MAX_DETECTIONS):
            hits = [
                (m.matched[category_id][0] & ~m.ignored[category_id][0])[:, :limit].sum()
                for m in of_class
            ]
            recall[a] += ratio(drawn @ np.array(hits), wanted[0]) / len(IOU_THRESHOLDS)
    known = np.where(classes > 0, classes, np.nan)
    means = precision / known[:, None]
    return {
        **{names[s]: means[s].mean(axis=0) for s in needed},
        "AP50": means[0, at[50]],
        "AP75": means[0, at[75]],
        **{f"AR{limit}": recall[a] / known[0] for a, limit in enumerate(MAX_DETECTIONS)},
    }


def _average_precision(
    right: Bools,
    wrong: Bools,
    owner: Ints,
    weights: Floats,
    wanted: Floats,
) -> Floats:
    """(B,) average precision of every draw for one class, range and threshold; 0 without instances.

    right, wrong: (R,) of the tracks in descending score; ignored ones are neither
    owner:        (R,) column of weights (B, v) that a track's video has
    wanted:       (B,) instances to be found
    """
    hits = np.flatnonzero(right)
    if not len(hits):
        return np.zeros(len(weights))
    # Precision peaks right after a hit, so only hits matter: the misses between two of them are
    # counted together, which keeps the arrays as short as the truth is.
    gap = np.searchsorted(hits, np.flatnonzero(wrong))
    before = np.zeros((weights.shape[1], len(hits) + 1))
    np.add.at(before, (owner[wrong], gap), 1.0)
    misses = np.cumsum(weights @ before[:, :-1], axis=1)
    found = np.cumsum(weights[:, owner[hits]], axis=1)
    precision = found / (found + misses + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = ratio(found, wanted[:, None])
    # Recall points that each hit is the first to reach.
    points = np.searchsorted(RECALL_POINTS, reached, side="right")
    points = np.diff(points, axis=1, prepend=0)
    area: Floats = (points * best).sum(axis=1) / len(RECALL_POINTS)
    return area


def intervals(
    matches: Sequence[VideoMatches], config: AnalysisConfig
) -> tuple[dict[str, Interval], dict[str, Floats]]:
    """Intervals of a method's scores by name, and the scores (resamples,) of the draws behind them.

    Both are empty for fewer than two videos or no resamples; names whose score no draw has are
    absent from the first.
    """
    if len(matches) < 2 or not config.resamples:
        return {}, {}
    scores = scores_of_draws(matches, draws(len(matches), config))
    stats = summarise(matches).stats
    found = {name: interval(values, stats[name], config) for name, values in scores.items()}
    return {name: bounds for name, bounds in found.items() if bounds is not None}, scores


def difference(first: Floats, second: Floats, value: float, config: AnalysisConfig) -> Difference:
    """What one method has over another, paired: both were scored on the same draws.

    first, second: (B,) scores of the draws, NaN where a draw has none
    Raises:
        ValueError: the draws differ in number, or none has a score of both methods.
    """
    if first.shape != second.shape:
        raise ValueError(f"both methods need the same draws, got {first.shape} and {second.shape}")
    gap = (first - second)[np.isfinite(first - second)]
    found = interval(gap, value, config, lowest=-1.0)
    if found is None:
        raise ValueError("no draw has a score of both methods")
    return Difference(value, found, float((gap > 0).mean() + (gap == 0).mean() / 2))


def interval(
    values: Floats, value: float, config: AnalysisConfig, lowest: float = 0.0
) -> Interval | None:
    """Percentiles of the draws' scores, moved so that the median is the score itself.

    A draw has fewer different videos than the data set, and AP, which takes the best precision at
    any higher recall, is the higher for it: only how widely draws differ tells something.
    (Percentiles chosen by the share of draws below the score, Efron 1987, leave the score outside.)

    values: (B,) scores of the draws, NaN where a draw has none; None if all of them are
    value:  the score on the videos as they are, in [lowest, 1]
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    tail = (1 - config.confidence) / 2
    low, median, high = np.percentile(known, [100 * tail, 50, 100 * (1 - tail)])
    low, high = np.clip([value + low - median, value + high - median], lowest, 1.0)
    return Interval(float(min(low, value)), float(max(high, value)))
