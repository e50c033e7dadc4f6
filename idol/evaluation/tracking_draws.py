"""HOTA, DetA, AssA and IDF1 of many choices of videos at once: folds, or draws for an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from idol.arrays import Floats
from idol.evaluation.tracking_metrics import ALPHAS, TrackingCounts, VideoTracking

NAMES = ("HOTA", "DetA", "AssA", "IDF1")
"""What tracking_of_draws reckons."""


def tracking_of_draws(
    counts: Sequence[VideoTracking], weights: NDArray[np.int64]
) -> dict[str, Floats]:
    """Tracking metrics of every draw, as `summarise_tracking(...).present_averaged` has them.

    Counts of videos add, so a draw is a weighted sum of them.

    counts:  of V videos
    weights: (B, V) how often a draw has each video, in the order of ascending video ids
    returns: HOTA, DetA, AssA, IDF1 -> (B,); NaN where a draw has no true instance
    """
    videos = sorted(counts, key=lambda v: v.video_id)
    if not videos or weights.shape[1] != len(videos):
        raise ValueError(
            f"weights must have one column for each of {len(videos)} videos, got {weights.shape}"
        )
    drawn = weights.astype(np.float64)
    sums = {name: np.zeros(len(drawn)) for name in NAMES}
    classes = np.zeros(len(drawn))
    for category_id in videos[0].categories:
        known = [v.counts.get(category_id) for v in videos]
        if all(c is None for c in known):
            continue
        of_class = [TrackingCounts.none() if c is None else c for c in known]
        truth, found, identity = (
            drawn @ np.array([getattr(c, name) for c in of_class], np.float64)
            for name in ("truth", "found", "identity_tp")
        )
        present = truth > 0
        classes += present
        tp = drawn @ np.array([c.hota_tp for c in of_class], np.float64).reshape(-1, len(ALPHAS))
        fits = drawn @ np.array([c.association for c in of_class]).reshape(-1, len(ALPHAS))
        detection = tp / np.maximum(1.0, truth[:, None] + found[:, None] - tp)
        association = fits / np.maximum(1.0, tp)
        sums["HOTA"] += present * np.sqrt(detection * association).mean(axis=1)
        sums["DetA"] += present * detection.mean(axis=1)
        sums["AssA"] += present * association.mean(axis=1)
        sums["IDF1"] += present * identity / np.maximum(1.0, (truth + found) / 2)
    return {name: total / np.where(classes > 0, classes, np.nan) for name, total in sums.items()}
