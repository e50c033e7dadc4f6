"""What went wrong with every false track and every missed instance of a video.

At each IoU threshold t every track entry is right, ignored or wrong, as in scoring. Every wrong one
has exactly one cause, the first of these that holds. IoU is spatio-temporal, t_b is
`AnalysisConfig.background_iou`; crowds are no instances here. The scheme is TIDE's (Bolya et al.,
ECCV 2020), with its error of location taken apart by time.

    duplicate      IoU >= t with an instance of its class, which a better entry has found
    class          IoU >= t with an instance of another class
      for the rest that have IoU >= t_b with an instance of their class, or show one in at least
      half of their frames:
    duplicate      it covers the instance in more frames in which another track shows it than it
                   shows the instance itself
    switch         IoU >= t if its frames of other instances were taken out, and the instance's
                   frames in tracks that belong to others were put in
    fragmentation  IoU >= t if also the instance's frames in other tracks were put in
    mask           even then IoU < t: poor masks, or frames in which nothing was found
    background     IoU < t_b with everything, and it shows nothing in half of its frames
    both           what is left: wrong class, and IoU < t

Which track covers and shows an instance, and which instance a track belongs to: `sightings.py`.

An entry with the cause class, switch, fragmentation or mask is a try at one instance: instances of
its class that are still to be found go to tries one to one, to as many as possible and with the
highest sum of IoUs; a try beyond these is at the instance it overlaps most. Every instance that is
not found at t, and that no entry tries, has a cause too:

    switch         its frames, joined from all tracks that show it, have IoU >= t: it is hidden in
                   tracks of others
    missed         they have not
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from idol.analysis import clips, oracles, sightings
from idol.analysis.clips import ClipTrack
from idol.analysis.oracles import MaskOverlaps
from idol.analysis.sightings import Sightings
from idol.arrays import Bools, Floats, Ints
from idol.config import AnalysisConfig
from idol.evaluation.matching import IOU_THRESHOLDS, MAX_DETECTIONS
from idol.ytvis.truth import VideoTruth

CAUSES = (
    "class",
    "mask",
    "duplicate",
    "background",
    "both",
    "missed",
    "switch",
    "fragmentation",
)
"""What can be fixed, one at a time."""

_NUMBER = {name: number for number, name in enumerate(CAUSES)}
NO_CAUSE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """How one true instance fared.

    video_id, instance_id, category_id: of the data set
    iou:           highest IoU of an entry of its class; 0 without any
    entry:         index of that entry in the results, or None
    joined_iou:    IoU of the masks that show it, joined from all tracks: what true identities give
    tracks:        tracks that show it
    switches:      how often the track that shows it changes
    frames:        frames in which it is present
    shown:         frames in which it is shown
    first_frame, last_frame: of its presence
    worst_frame:   the frame in which that entry overlaps it least, among those of its presence
    lost:          share of the IoU thresholds at which it is not found
    cause:         why, at most of these thresholds; "" where it is found at all
    """

    video_id: int
    instance_id: int
    category_id: int
    iou: float
    entry: int | None
    joined_iou: float
    tracks: int
    switches: int
    frames: int
    shown: int
    first_frame: int
    last_frame: int
    worst_frame: int
    lost: float
    cause: str


@dataclass(frozen=True, slots=True, eq=False)
class VideoErrors:
    """Causes of one video, E entries and G instances. Mergeable, the unit of the map.

    video_id:       of the data set
    categories:     category_id of every class of the data set
    category_ids:   (E,) of the entries, at most 100 of a class, each class by descending score
    scores:         (E,)
    right:          (10, E) bool, finds an instance
    wrong:          (10, E) bool, finds none; neither: ignored
    cause:          (10, E) int8, position in CAUSES of what is wrong, or -1
    target:         (10, E) position of the instance that a wrong entry tries, or -1
    truth_category_ids: (G,)
    counted:        (G,) bool, instances that are to be found (no crowds)
    found:          (10, G) bool
    truth_cause:    (10, G) int8, as cause, of instances that nothing finds or tries
    hidden_scores:  (G,) mean score of the masks that show an instance; NaN where none does
    instances:      one for each that is counted
    """

    video_id: int
    categories: tuple[int, ...]
    category_ids: Ints
    scores: Floats
    right: Bools
    wrong: Bools
    cause: NDArray[np.int8]
    target: Ints
    truth_category_ids: Ints
    counted: Bools
    found: Bools
    truth_cause: NDArray[np.int8]
    hidden_scores: Floats
    instances: tuple[Instance, ...]


def causes_of_video(
    entries: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    truth: VideoTruth,
    config: AnalysisConfig,
) -> VideoErrors:
    """Find the cause of every error of one video.

    entries, indices: as of `clips.tracks_of`; clips are joined first
    truth:            of the video, with masks
    """
    if clips.are_clips(entries):
        # Positions in the file are gone with the clips; those of the joined tracks stand for them.
        entries = clips.join(entries, indices, truth, config)
        indices = range(len(entries))
    tracks = clips.tracks_of(entries, indices, truth)
    masks = oracles.overlaps(tracks, truth)
    seen = sightings.find(tracks, masks, truth, config)
    kept = _entries(tracks)
    counted = ~truth.crowd
    holder = _holders(kept, seen, truth)
    found = np.zeros((len(IOU_THRESHOLDS), len(truth)), bool)
    for t, row in enumerate(holder):
        found[t, row[row >= 0]] = True
    wrong = holder < 0
    cause = np.full(holder.shape, NO_CAUSE, np.int8)
    target = np.full(holder.shape, -1, np.int64)
    truth_cause = np.full(found.shape, NO_CAUSE, np.int8)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        rows = np.flatnonzero(wrong[t])
        cause[t, rows], target[t, rows] = _causes(
            seen, kept.track[rows], kept.category_ids[rows], truth, found[t], threshold, config
        )
        left = counted & ~found[t]
        left[target[t][target[t] >= 0]] = False
        truth_cause[t, left] = _NUMBER["missed"]
        truth_cause[t, left & (seen.whole >= threshold)] = _NUMBER["switch"]
    made = VideoErrors(
        truth.video_id,
        truth.categories,
        kept.category_ids,
        kept.scores,
        (holder >= 0) & counted[holder] if len(truth) else np.zeros(holder.shape, bool),
        wrong,
        cause,
        target,
        truth.category_ids,
        counted,
        found,
        truth_cause,
        seen.scores(tracks, masks),
        (),
    )
    instances = [
        _instance(g, made, seen, masks, kept, truth) for g in np.flatnonzero(counted).tolist()
    ]
    return dataclasses.replace(made, instances=tuple(instances))


class _Entries(NamedTuple):
    """The E entries of a video that scoring keeps: each class by descending score.

    track:        (E,) position of the track
    category_ids: (E,)
    scores:       (E,)
    positions:    (E,) in the file
    """

    track: Ints
    category_ids: Ints
    scores: Floats
    positions: Ints


def _entries(tracks: Sequence[ClipTrack]) -> _Entries:
    """At most 100 entries of each class."""
    rows = [
        (category_id, -score, track.positions[category_id], n)
        for n, track in enumerate(tracks)
        for category_id, score in track.class_scores.items()
    ]
    rows.sort()
    kept, count = [], 0
    for k, row in enumerate(rows):
        count = count + 1 if k and rows[k - 1][0] == row[0] else 1
        if count <= MAX_DETECTIONS[-1]:
            kept.append(row)
    return _Entries(
        np.array([n for _, _, _, n in kept], np.int64),
        np.array([c for c, _, _, _ in kept], np.int64),
        np.array([-s for _, s, _, _ in kept], np.float64),
        np.array([p for _, _, p, _ in kept], np.int64),
    )


def _holders(entries: _Entries, seen: Sightings, truth: VideoTruth) -> Ints:
    """(10, E) instance that each entry holds at every threshold, or -1."""
    out = np.full((len(IOU_THRESHOLDS), len(entries.scores)), -1, np.int64)
    for category_id in np.unique(entries.category_ids):
        rows = np.flatnonzero(entries.category_ids == category_id)
        columns = np.flatnonzero(truth.category_ids == category_id)
        part = _matches(seen.iou[np.ix_(entries.track[rows], columns)], truth.crowd[columns])
        out[:, rows] = np.where(part >= 0, columns[part] if len(columns) else -1, -1)
    return out


def _matches(iou: Floats, crowd: Bools) -> Ints:
    """(10, R) column that each entry of one class holds at every threshold, or -1.

    The evaluator's matching (`matching.match_video`), but saying which. Descending score.
    """
    out = np.full((len(IOU_THRESHOLDS), len(iou)), -1, np.int64)
    free = np.ones((len(IOU_THRESHOLDS), iou.shape[1]), bool)
    for n, row in enumerate(iou):
        for t, threshold in enumerate(np.minimum(IOU_THRESHOLDS, 1 - 1e-10)):
            possible = free[t] & (row >= threshold)
            if not possible.any():
                continue
            if (possible & ~crowd).any():
                possible &= ~crowd
            # Of equal overlaps the last.
            g = len(row) - 1 - int(np.where(possible, row, -1.0)[::-1].argmax())
            out[t, n] = g
            free[t, g] = crowd[g]
    return out


def _causes(
    seen: Sightings,
    of_track: Ints,
    category_ids: Ints,
    truth: VideoTruth,
    found: Bools,
    threshold: float,
    config: AnalysisConfig,
) -> tuple[NDArray[np.int8], Ints]:
    """(W,) cause and target of the wrong entries at one threshold.

    of_track, category_ids: (W,) of these entries
    found:                  (G,) instances found at this threshold
    """
    cause = np.full(len(of_track), _NUMBER["background"], np.int8)
    target = np.full(len(of_track), -1, np.int64)
    if not len(truth) or not len(of_track):
        return cause, target
    iou = np.where(truth.crowd, -1.0, seen.iou[of_track])
    same = truth.category_ids == category_ids[:, None]
    reached = iou >= min(threshold, 1 - 1e-10)
    half = 2 * seen.show_frames[of_track] >= np.maximum(seen.masks[of_track], 1)[:, None]
    near = ~truth.crowd & ((iou >= config.background_iou) | half)
    cause[(near & ~same).any(axis=1)] = _NUMBER["both"]
    other = (reached & ~same).any(axis=1)
    double = (reached & same).any(axis=1)
    cause[other] = _NUMBER["class"]
    target[other] = np.where(reached & ~same, iou, -1.0)[other].argmax(axis=1)
    rows = np.flatnonzero((near & same).any(axis=1) & ~other & ~double)
    target[rows] = np.where(near & same, iou, -2.0)[rows].argmax(axis=1)
    at = (of_track[rows], target[rows])
    double[rows] = seen.double[at] > seen.show_frames[at]
    cause[double] = _NUMBER["duplicate"]
    target[double] = -1
    rows = rows[~double[rows]]
    open_ = np.flatnonzero(~found & ~truth.crowd)
    # +1: as many instances as possible get a try, and frames shown count also without any IoU.
    possible = (near & same)[np.ix_(rows, open_)]
    value = np.where(possible, iou[np.ix_(rows, open_)] + 1.0, 0.0)
    for a, b in zip(*linear_sum_assignment(value, maximize=True), strict=True):
        if possible[a, b]:
            target[rows[a]] = open_[b]
    for k in rows.tolist():
        n, g = of_track[k], target[k]
        if seen.show_frames[n, g] and seen.repaired[n, g] >= threshold:
            cause[k] = _NUMBER["switch"]
        elif seen.show_frames[n, g] and seen.joined[n, g] >= threshold:
            cause[k] = _NUMBER["fragmentation"]
        else:
            cause[k] = _NUMBER["mask"]
    return cause, target


def _instance(
    g: int,
    made: VideoErrors,
    seen: Sightings,
    masks: MaskOverlaps,
    entries: _Entries,
    truth: VideoTruth,
) -> Instance:
    """How instance g fared."""
    rows = np.flatnonzero(made.category_ids == truth.category_ids[g])
    present = np.flatnonzero(truth.areas[g])
    in_frame = np.zeros(truth.length)
    iou, entry = 0.0, None
    if len(rows) and (overlap := seen.iou[entries.track[rows], g]).any():
        best = rows[overlap.argmax()]
        iou, entry = float(overlap.max()), int(entries.positions[best])
        own = np.flatnonzero(masks.track == entries.track[best])
        in_frame[masks.frame[own]] = seen.frame_iou[own, g]
    showing = seen.shown_by[g][seen.shown_by[g] >= 0]
    track_ids = masks.track[showing]
    why: Counter[str] = Counter()
    for t in np.flatnonzero(~made.found[:, g]).tolist():
        # Entries are sorted by class, then score, so the first try of each class is its best.
        tries = np.flatnonzero(made.target[t] == g)
        number = made.truth_cause[t, g]
        if len(tries):
            number = made.cause[t, tries[made.scores[tries].argmax()]]
        why[CAUSES[number]] += 1
    # An instance that is nowhere present counts all the same; its frames are the whole video.
    first, last = (present[0], present[-1]) if len(present) else (0, truth.length - 1)
    worst = present[in_frame[present].argmin()] if len(present) else 0
    return Instance(
        video_id=truth.video_id,
        instance_id=int(truth.instance_ids[g]),
        category_id=int(truth.category_ids[g]),
        iou=iou,
        entry=entry,
        joined_iou=float(seen.whole[g]),
        tracks=len(np.unique(track_ids)),
        switches=int((np.diff(track_ids) != 0).sum()),
        frames=len(present),
        shown=len(showing),
        first_frame=int(first),
        last_frame=int(last),
        worst_frame=int(worst),
        lost=float((~made.found[:, g]).mean()),
        cause=why.most_common(1)[0][0] if why else "",
    )
