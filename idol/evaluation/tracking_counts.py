"""The matchings behind HOTA, CLEAR and identity metrics: one video and class becomes counts.

Sources: J. Luiten et al., HOTA (IJCV 2021); Voigtlaender et al., MOTS (CVPR 2019); Ristani et al.,
IDF1 (2016); rules where those leave a choice: JonathonLuiten/TrackEval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from idol.arrays import Floats, Ints
from idol.evaluation.overlaps import ratio

Frame = tuple[Ints, Ints, Floats]
"""One frame: (g,) rows of the instances seen, (n,) rows of the tracks seen, (g, n) similarity."""

# TrackEval's protocol, not ours to tune: hence constants and no configuration.
ALPHAS = np.arange(0.05, 0.99, 0.05)
"""(19,) localisation thresholds that HOTA is averaged over."""
SIMILARITY_THRESHOLD = 0.5
"""Mask IoU from which CLEAR and identity metrics take a detection to show an instance."""
_KEEP = 1000.0  # CLEAR: continuing the last frame's pair outweighs any similarity
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, eq=False)
class TrackingCounts:
    """What the metrics are ratios of, as sums: counts of two videos or classes add with `+`.

    Without arguments: of a class or video with neither truth nor tracks.

    truth, found:    masks of true instances and of tracks, over all frames
    hota_tp:         (19,) matched masks at every alpha
    similarity:      (19,) their similarity, summed
    association:     (19,) over matched masks, sum of TPA / (TPA + FNA + FPA) of their pair
    recall:          (19,) the same, TPA / (TPA + FNA)
    precision:       (19,) the same, TPA / (TPA + FPA)
    clear_tp:        masks matched by CLEAR, which prefers the last frame's pairs
    clear_similarity: their similarity, summed
    switches:        identity switches
    fragmentations:  times that an instance is found again after a gap
    mostly_tracked, partly_tracked, mostly_lost: instances found in over 80 %, from 20 to 80 %,
                     under 20 % of their frames
    identity_tp:     masks matched by the best one-to-one assignment of whole tracks to instances
    """

    truth: int = 0
    found: int = 0
    hota_tp: Ints = field(default_factory=lambda: np.zeros(len(ALPHAS), np.int64))
    similarity: Floats = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    association: Floats = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    recall: Floats = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    precision: Floats = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    clear_tp: int = 0
    clear_similarity: float = 0.0
    switches: int = 0
    fragmentations: int = 0
    mostly_tracked: int = 0
    partly_tracked: int = 0
    mostly_lost: int = 0
    identity_tp: int = 0

    def __add__(self, other: TrackingCounts) -> TrackingCounts:
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in dataclasses.fields(self)
        }
        return TrackingCounts(**sums)


def count_frames(frames: Sequence[Frame], num_truth: int, num_tracks: int) -> TrackingCounts:
    """All counts of one video and class.

    frames:     of the video, in order
    num_truth:  rows of instances that the frames name; num_tracks: of tracks
    """
    truth_frames = np.zeros(num_truth, np.int64)
    track_frames = np.zeros(num_tracks, np.int64)
    for g, n, _ in frames:
        truth_frames[g] += 1
        track_frames[n] += 1
    if not truth_frames.any() or not track_frames.any():
        return TrackingCounts(
            truth=int(truth_frames.sum()),
            found=int(track_frames.sum()),
            mostly_lost=int((truth_frames > 0).sum()),
        )
    hota_tp, similarity, association, recall, precision = _hota(frames, truth_frames, track_frames)
    clear_tp, clear_similarity, switches, again, mostly, partly, lost = _clear(frames, truth_frames)
    return TrackingCounts(
        truth=int(truth_frames.sum()),
        found=int(track_frames.sum()),
        hota_tp=hota_tp,
        similarity=similarity,
        association=association,
        recall=recall,
        precision=precision,
        clear_tp=clear_tp,
        clear_similarity=clear_similarity,
        switches=switches,
        fragmentations=again,
        mostly_tracked=mostly,
        partly_tracked=partly,
        mostly_lost=lost,
        identity_tp=_identity(frames, num_truth, num_tracks),
    )


def _hota(
    frames: Sequence[Frame], truth_frames: Ints, track_frames: Ints
) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """HOTA's matching: hota_tp, similarity, association, recall and precision, each (19,).

    One matching serves all alphas. It maximises similarity times how well two identities fit over
    the whole video, where a frame gives a pair its share of what overlaps with either (IJCV 2021,
    Sec. 5, in TrackEval's form).
    """
    both = truth_frames[:, None] + track_frames[None, :]
    fit = np.zeros(both.shape)
    for g, n, similarity in frames:
        share = similarity.sum(axis=0)[None, :] + similarity.sum(axis=1)[:, None] - similarity
        fit[g[:, None], n] += np.divide(
            similarity, share, out=np.zeros_like(similarity), where=share > _EPS
        )
    alignment = ratio(fit, both - fit)
    matched = np.zeros((len(ALPHAS), *both.shape), np.int64)
    true_positives = np.zeros(len(ALPHAS), np.int64)
    summed = np.zeros(len(ALPHAS))
    for g, n, similarity in frames:
        if not similarity.any():
            continue
        i, j = scipy.optimize.linear_sum_assignment(
            alignment[g[:, None], n] * similarity, maximize=True
        )
        values = similarity[i, j]
        right = values >= ALPHAS[:, None] - _EPS
        true_positives += right.sum(axis=1)
        summed += (right * values).sum(axis=1)
        matched[:, g[i], n[j]] += right

    def of_pairs(denominator: NDArray[Any]) -> Floats:
        sums: Floats = (matched * (matched / np.maximum(1, denominator))).sum(axis=(1, 2))
        return sums

    return (
        true_positives,
        summed,
        of_pairs(both - matched),
        of_pairs(truth_frames[:, None]),
        of_pairs(track_frames[None, :]),
    )


def _clear(
    frames: Sequence[Frame], truth_frames: Ints
) -> tuple[int, float, int, int, int, int, int]:
    """CLEAR's matching, frame after frame, as in the fields of TrackingCounts."""
    none = -1
    ever = np.full(len(truth_frames), none)  # the track that last showed an instance
    before = ever.copy()  # the same, of the last frame that had truth and tracks
    times_found = np.zeros_like(truth_frames)
    times_started = np.zeros_like(truth_frames)
    true_positives, summed, switches = 0, 0.0, 0
    for g, n, similarity in frames:
        # A frame without truth or without tracks is no gap: TrackEval leaves the pairs as they are.
        if not len(g) or not len(n):
            continue
        gain = _KEEP * (n[None, :] == before[g][:, None]) + similarity
        gain[similarity < SIMILARITY_THRESHOLD - _EPS] = 0.0
        i, j = scipy.optimize.linear_sum_assignment(gain, maximize=True)
        valid = gain[i, j] > _EPS
        i, j = i[valid], j[valid]
        instances, tracks = g[i], n[j]
        switches += int(((ever[instances] != none) & (ever[instances] != tracks)).sum())
        ever[instances] = tracks
        times_found[instances] += 1
        now = np.full_like(before, none)
        now[instances] = tracks
        times_started += (before == none) & (now != none)
        before = now
        true_positives += len(i)
        summed += float(similarity[i, j].sum())
    share = times_found[truth_frames > 0] / truth_frames[truth_frames > 0]
    mostly = int((share > 0.8).sum())
    partly = int((share >= 0.2).sum()) - mostly
    again = int((times_started[times_started > 0] - 1).sum())
    return true_positives, summed, switches, again, mostly, partly, len(share) - mostly - partly


def _identity(frames: Sequence[Frame], num_truth: int, num_tracks: int) -> int:
    """Masks matched by the best one-to-one assignment of whole tracks to instances (IDTP)."""
    together = np.zeros((num_truth, num_tracks), np.int64)
    for g, n, similarity in frames:
        together[g[:, None], n] += similarity >= SIMILARITY_THRESHOLD
    # A pair costs its frames less twice those together, either alone costs its frames: so the
    # cheapest assignment is the one with most frames together.
    return int(together[scipy.optimize.linear_sum_assignment(together, maximize=True)].sum())
