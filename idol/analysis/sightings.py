"""Which track shows which true instance in which frame, and what a track would be if repaired.

A track *covers* an instance in a frame if their masks there have an IoU of at least
`AnalysisConfig.identity_iou`. It *shows* it if no track with a higher score covers it there: in a
frame tracks and instances are paired one to one. A track *belongs* to the instance that it shows
in most frames (of equals, the first in time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idol.analysis.clips import ClipTrack
from idol.analysis.oracles import MaskOverlaps
from idol.arrays import Floats, Ints
from idol.config import AnalysisConfig
from idol.evaluation.overlaps import ratio
from idol.ytvis.truth import VideoTruth


@dataclass(frozen=True, slots=True, eq=False)
class Sightings:
    """N tracks with R masks, G instances, T frames.

    iou:         (N, G) spatio-temporal
    frame_iou:   (R, G) of every mask in its frame
    shown_by:    (G, T) row of the mask that shows the instance, or -1
    show_frames: (N, G) frames in which a track shows an instance
    double:      (N, G) frames in which a track covers an instance that another track shows
    masks:       (N,) frames in which a track has a mask
    repaired:    (N, G) IoU with the track's switches undone
    joined:      (N, G) IoU with all frames of the instance put in as well
    whole:       (G,) IoU of the masks that show the instance, joined
    """

    iou: Floats
    frame_iou: Floats
    shown_by: Ints
    show_frames: Ints
    double: Ints
    masks: Ints
    repaired: Floats
    joined: Floats
    whole: Floats

    def scores(self, tracks: Sequence[ClipTrack], masks: MaskOverlaps) -> Floats:
        """(G,) mean score of the masks that show an instance; NaN where none does."""
        best = _best_scores(tracks)[masks.track]
        out = np.full(len(self.shown_by), np.nan)
        for g, row in enumerate(self.shown_by):
            if (row >= 0).any():
                out[g] = best[row[row >= 0]].mean()
        return out


def find(
    tracks: Sequence[ClipTrack], masks: MaskOverlaps, truth: VideoTruth, config: AnalysisConfig
) -> Sightings:
    """The sightings of one video; masks: of these tracks, as of `oracles.overlaps`."""
    union = truth.areas.T.astype(np.float64)[masks.frame]
    union += masks.area[:, None]
    union -= masks.intersection
    frame_iou = ratio(masks.intersection, union)
    shared = np.zeros((len(tracks), len(truth)))
    area = np.zeros(len(tracks))
    np.add.at(shared, masks.track, masks.intersection)
    np.add.at(area, masks.track, masks.area)
    total_truth = truth.areas.sum(axis=1).astype(np.float64)

    rows, columns = np.nonzero(frame_iou >= config.identity_iou)
    best = _best_scores(tracks)[masks.track[rows]]
    order = np.lexsort((columns, rows, -frame_iou[rows, columns], -best))
    shows = np.full(len(masks.track), -1, np.int64)
    shown_by = np.full((len(truth), truth.length), -1, np.int64)
    for r, g in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if shows[r] < 0 and shown_by[g, masks.frame[r]] < 0:
            shows[r] = g
            shown_by[g, masks.frame[r]] = r
    show_frames = np.zeros(shared.shape, np.int64)
    np.add.at(show_frames, (masks.track[shows >= 0], shows[shows >= 0]), 1)
    double = np.zeros(shared.shape, np.int64)
    taken = shown_by[columns, masks.frame[rows]]
    other = (taken >= 0) & (taken != rows)
    np.add.at(double, (masks.track[rows[other]], columns[other]), 1)
    return Sightings(
        ratio(shared, area[:, None] + total_truth - shared),
        frame_iou,
        shown_by,
        show_frames,
        double,
        np.bincount(masks.track, minlength=len(tracks)),
        *_repaired(masks, shows, shown_by, show_frames, total_truth),
    )


def _best_scores(tracks: Sequence[ClipTrack]) -> Floats:
    """(N,) highest score of each track."""
    return np.array([max(track.class_scores.values()) for track in tracks], np.float64)


def _repaired(
    masks: MaskOverlaps, shows: Ints, shown_by: Ints, show_frames: Ints, total_truth: Floats
) -> tuple[Floats, Floats, Floats]:
    """`Sightings.repaired`, `joined` and `whole`; shows: (R,) instance of each mask, or -1."""
    repaired, joined = np.zeros(show_frames.shape), np.zeros(show_frames.shape)
    whole = np.zeros(len(shown_by))
    belongs = _belongs(masks, shows, show_frames)[masks.track]
    for g, row in enumerate(shown_by):
        given = row[row >= 0]

        def iou(used: Ints, g: int = g) -> float:
            inside, pixels = masks.intersection[used, g].sum(), masks.area[used].sum()
            union = pixels + total_truth[g] - inside
            return float(inside / union) if union > 0 else 0.0

        whole[g] = iou(given)
        for n in np.flatnonzero(show_frames[:, g]).tolist():
            own = np.flatnonzero((masks.track == n) & ((shows < 0) | (shows == g)))
            others = given[masks.track[given] != n]
            for out, put_in in ((repaired, others[belongs[others] != g]), (joined, others)):
                # What shows the instance goes before the track's own mask that shows nothing.
                kept = own[~np.isin(masks.frame[own], masks.frame[put_in])]
                out[n, g] = iou(np.concatenate([kept, put_in]))
    return repaired, joined, whole


def _belongs(masks: MaskOverlaps, shows: Ints, show_frames: Ints) -> Ints:
    """(N,) instance that each track belongs to, or -1."""
    out = np.full(len(show_frames), -1, np.int64)
    showing = np.flatnonzero(shows >= 0)
    for r in showing[np.argsort(masks.frame[showing], kind="stable")].tolist():
        n, g = masks.track[r], shows[r]
        if out[n] < 0 or show_frames[n, g] > show_frames[n, out[n]]:
            out[n] = g
    return out
