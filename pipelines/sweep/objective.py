"""What a sweep maximises: one metric, or a weighted mix of average precision and tracking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from idol.analysis import intervals
from idol.arrays import Floats, Ints
from idol.evaluation import average_precision, tracking_metrics
from idol.evaluation.matching import OCCLUSION_RANGES, VideoMatches
from idol.evaluation.tracking_metrics import VideoTracking

TRACKING: Final = tracking_metrics.DRAWN
"""Tracking metrics, each the mean over the classes with truth, as AP is."""
_AVERAGE_PRECISION: Final = (*intervals.STATS, "APs", "APm", "APl")
_OCCLUSION: Final = tuple(f"AP_{name[0]}o" for name in OCCLUSION_RANGES)
_TERM = re.compile(r"^(?:([0-9.]+)\s*\*\s*)?([A-Za-z0-9_]+)$")


@dataclass(frozen=True, slots=True)
class Objective:
    """A weighted sum of metrics.

    name:     as the user wrote it
    weights:  metric -> weight
    separate: metrics that the search maximises each by itself, for AP,HOTA; () for one sum. The
              best configuration is that with the highest mean of them
    """

    name: str
    weights: dict[str, float]
    separate: tuple[str, ...] = ()

    @property
    def tracking(self) -> bool:
        """Whether tracking metrics are needed, which cost about as much as tracking itself."""
        return not set(TRACKING).isdisjoint(self.weights)

    def of(self, stats: dict[str, float]) -> float:
        """The value of these metrics; -1 where one of them has no truth to score against."""
        if min(stats[name] for name in self.weights) < 0:
            return -1.0
        return sum(weight * stats[name] for name, weight in self.weights.items())

    def of_draws(
        self,
        matches: Sequence[VideoMatches],
        counts: Sequence[VideoTracking],
        weights: Ints,
    ) -> Floats:
        """The values of B draws of V videos: (B,), NaN where a draw has no truth.

        counts:  of V videos; () where no tracking metric is needed
        weights: (B, V) how often a draw has each video, by ascending video ids
        """
        scores = intervals.scores_of_draws(matches, weights, only=self.weights)
        if self.tracking:
            scores |= tracking_metrics.tracking_of_draws(counts, weights)
        total: Floats = np.sum([w * scores[name] for name, w in self.weights.items()], axis=0)
        return total


def parse(text: str, *, occlusion: bool) -> Objective:
    """An objective from text: AP, HOTA, "0.7*AP+0.3*IDF1", "AP,HOTA", ...

    occlusion: whether the truth has occlusion scores, which AP_so, AP_mo and AP_ho need
    Raises: ValueError: another text; the message names all metrics.
    """
    known = (*_AVERAGE_PRECISION, *(_OCCLUSION if occlusion else ()), *TRACKING)
    if "," in text:
        parts = [parse(part.strip(), occlusion=occlusion) for part in text.split(",")]
        names = tuple(name for part in parts for name in part.weights)
        if any(part.weights != {part.name: 1.0} for part in parts) or len({*names}) < len(names):
            raise ValueError(f"an objective of several is a list of metrics, got {text!r}")
        return Objective(text, dict.fromkeys(names, 1 / len(names)), names)
    weights: dict[str, float] = {}
    for term in text.split("+"):
        found = _TERM.match(term.strip())
        if found is None or found[2] not in known or found[2] in weights:
            raise ValueError(
                f"there is no metric {term.strip()!r} here; an objective is one of {[*known]}, "
                "a sum such as 0.7*AP+0.3*HOTA, or several such as AP,HOTA"
            )
        try:
            weights[found[2]] = float(found[1] or 1.0)
        except ValueError as error:
            raise ValueError(f"{found[1]!r} in the objective {text!r} is no number") from error
    if sum(weights.values()) <= 0:
        raise ValueError(f"the weights of the objective {text!r} must not all be 0")
    return Objective(text, weights)


def stats(matches: Sequence[VideoMatches], counts: Sequence[VideoTracking]) -> dict[str, float]:
    """All metrics of these videos, by name; without counts, no tracking metrics."""
    found = dict(average_precision.summarise(matches).stats)
    if counts:
        values = tracking_metrics.summarise_tracking(counts).present_averaged.values
        found |= {name: values[name] for name in (*TRACKING, "IDSW")}
    return found
