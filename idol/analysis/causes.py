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
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from idol.analysis import clips, oracles, sightings
from idol.analysis.clips import ClipTrack
from idol.analysis.oracles import MaskOverlaps
from idol.analysis.sightings import Sightings
from idol.arrays import Bools, Floats, Ints
from idol.config import AnalysisConfig
from idol.evaluation.matching import IOU_THRESHOLDS, MAX_DETECTIONS
from idol.ytvis.truth import VideoTruth

CAUSES = ("class", "mask", "duplicate", "background", "both", "missed", "switch", "fragmentation")
"""What can be fixed, one at a time."""
NO_CAUSE = -1

_NUMBER = {name: number for number, name in enumerate(CAUSES)}
_Entries = NDArray[Any]  # of _ENTRY
_ENTRY = np.dtype(
    [("category_id", np.int64), ("below", float), ("position", np.int64), ("track", np.int64)]
)


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """How one true instance fared.

    iou:           highest IoU of an entry of its class; 0 without any
    entry:         index of that entry in the results, or None
    joined_iou:    IoU of the masks that show it, joined from all tracks: what true identities give
    tracks:        tracks that show it
    switches:      how often the track that shows it changes
    frames, shown: frames in which it is present, and those in which it is shown
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
    """Causes of one video, E entries and G instances.

    category_ids:   (E,) of the entries, at most 100 of a class, each class by descending score
    right, wrong:   (10, E) bool, finds an instance, or none; neither: ignored
    cause:          (10, E) int8, position in CAUSES of what is wrong, or -1
    target:         (10, E) position of the instance that a wrong entry tries, or -1
    counted, found: (G,) bool, instances that are to be found (no crowds); (10, G) bool
    truth_cause:    (10, G) int8, as cause, of instances that nothing finds or tries
    hidden_scores:  (G,) mean score of the masks that show an instance; NaN where none does
    instances:      those that are counted
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
    """Find the cause of every error of one video, arguments as of `clips.tracks_of`.

    Clips are joined first; the truth needs masks.
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
    found = (holder[:, :, None] == np.arange(len(truth))).any(axis=1)
    wrong = holder < 0
    cause = np.full(holder.shape, NO_CAUSE, np.int8)
    target = np.full(holder.shape, -1, np.int64)
    truth_cause = np.full(found.shape, NO_CAUSE, np.int8)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        rows = np.flatnonzero(wrong[t])
        cause[t, rows], target[t, rows] = _causes(
            seen, kept[rows], truth, found[t], threshold, config
        )
        left = counted & ~found[t]
        left[target[t][target[t] >= 0]] = False
        truth_cause[t, left] = _NUMBER["missed"]
        truth_cause[t, left & (seen.whole >= threshold)] = _NUMBER["switch"]
    made = VideoErrors(
        truth.video_id,
        truth.categories,
        kept["category_id"],
        -kept["below"],
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


def _entries(tracks: Sequence[ClipTrack]) -> _Entries:
    """The E entries that scoring keeps: at most 100 of each class, by descending score."""
    rows = sorted(
        (category_id, -score, track.positions[category_id], n)
        for n, track in enumerate(tracks)
        for category_id, score in track.class_scores.items()
    )
    of_classes = (of_class for _, of_class in itertools.groupby(rows, key=lambda row: row[0]))
    kept = [row for group in of_classes for row in itertools.islice(group, MAX_DETECTIONS[-1])]
    return np.array(kept, _ENTRY)


def _holders(entries: _Entries, seen: Sightings, truth: VideoTruth) -> Ints:
    """(10, E) instance that each entry holds at every threshold, or -1.

    The evaluator's matching (`matching.match_video`), but saying which.
    """
    out = np.full((len(IOU_THRESHOLDS), len(entries)), -1, np.int64)
    free = np.ones((len(IOU_THRESHOLDS), len(truth)), bool)
    for n, entry in enumerate(entries):
        same = truth.category_ids == entry["category_id"]
        row = np.where(same, seen.iou[entry["track"]], -1.0)
        for t, threshold in enumerate(np.minimum(IOU_THRESHOLDS, 1 - 1e-10)):
            possible = free[t] & (row >= threshold)
            if not possible.any():
                continue
            if (possible & ~truth.crowd).any():
                possible &= ~truth.crowd
            # Of equal overlaps the last.
            g = len(row) - 1 - int(np.where(possible, row, -1.0)[::-1].argmax())
            out[t, n] = g
            free[t, g] = truth.crowd[g]
    return out


def _causes(
    seen: Sightings,
    entries: _Entries,
    truth: VideoTruth,
    found: Bools,
    threshold: float,
    config: AnalysisConfig,
) -> tuple[NDArray[np.int8], Ints]:
    """(W,) cause and target of the wrong entries at one threshold; found: (G,) at this one."""
    of_track = entries["track"]
    cause = np.full(len(of_track), _NUMBER["background"], np.int8)
    target = np.full(len(of_track), -1, np.int64)
    if not len(truth) or not len(of_track):
        return cause, target
    iou = np.where(truth.crowd, -1.0, seen.iou[of_track])
    same = truth.category_ids == entries["category_id"][:, None]
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
    for a, b in zip(*scipy.optimize.linear_sum_assignment(value, maximize=True), strict=True):
        if possible[a, b]:
            target[rows[a]] = open_[b]
    at = (of_track[rows], target[rows])
    shown = seen.show_frames[at] > 0
    cause[rows] = _NUMBER["mask"]
    cause[rows[shown & (seen.joined[at] >= threshold)]] = _NUMBER["fragmentation"]
    cause[rows[shown & (seen.repaired[at] >= threshold)]] = _NUMBER["switch"]
    return cause, target


def _instance(
    g: int,
    made: VideoErrors,
    seen: Sightings,
    masks: MaskOverlaps,
    entries: _Entries,
    truth: VideoTruth,
) -> Instance:
    rows = np.flatnonzero(made.category_ids == truth.category_ids[g])
    present = np.flatnonzero(truth.areas[g])
    in_frame = np.zeros(truth.length)
    iou, entry = 0.0, None
    if len(rows) and (overlap := seen.iou[entries["track"][rows], g]).any():
        best = entries[rows[overlap.argmax()]]
        iou, entry = float(overlap.max()), int(best["position"])
        own = np.flatnonzero(masks.track == best["track"])
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
