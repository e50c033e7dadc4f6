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

A track *covers* an instance in a frame if their masks there have an IoU of at least
`AnalysisConfig.identity_iou`. It *shows* it if no track with a higher score covers it there: in a
frame tracks and instances are paired one to one. A track *belongs* to the instance that it shows
in most frames (of equals, the first in time).

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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from idol.analysis import clips, oracles
from idol.analysis.clips import ClipTrack
from idol.analysis.oracles import MaskOverlaps
from idol.arrays import Bools, Floats
from idol.config import AnalysisConfig
from idol.evaluation.matching import IOU_THRESHOLDS, MAX_DETECTIONS
from idol.evaluation.overlaps import ratio
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
    category_ids: NDArray[np.int64]
    scores: Floats
    right: Bools
    wrong: Bools
    cause: NDArray[np.int8]
    target: NDArray[np.int64]
    truth_category_ids: NDArray[np.int64]
    counted: Bools
    found: Bools
    truth_cause: NDArray[np.int8]
    hidden_scores: Floats
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Sightings:
    """Which track shows which instance when. N tracks, R masks, G instances, T frames.

    iou:         (N, G) spatio-temporal
    frame_iou:   (R, G) of every mask in its frame
    shows:       (R,) instance, or -1
    shown_by:    (G, T) row of the mask that shows it, or -1
    show_frames: (N, G) frames in which a track shows an instance
    double:      (N, G) frames in which it covers one that another track shows
    masks:       (N,) frames in which a track has a mask
    repaired:    (N, G) IoU with the track's switches undone
    joined:      (N, G) IoU with all frames of the instance put in as well
    whole:       (G,) IoU of the masks that show the instance, joined
    """

    iou: Floats
    frame_iou: Floats
    shows: NDArray[np.int64]
    shown_by: NDArray[np.int64]
    show_frames: NDArray[np.int64]
    double: NDArray[np.int64]
    masks: NDArray[np.int64]
    repaired: Floats
    joined: Floats
    whole: Floats


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
    measured = oracles.overlaps(tracks, truth)
    seen = _sightings(tracks, measured, truth, config)
    of_track, categories, scores, positions = _entries(tracks)
    counted = ~truth.crowd
    shape = (len(IOU_THRESHOLDS), len(scores))
    holder = np.full(shape, -1, np.int64)
    for category_id in np.unique(categories):
        rows = np.flatnonzero(categories == category_id)
        columns = np.flatnonzero(truth.category_ids == category_id)
        part = _matches(seen.iou[np.ix_(of_track[rows], columns)], truth.crowd[columns])
        holder[:, rows] = np.where(part >= 0, columns[part] if len(columns) else -1, -1)
    right = (holder >= 0) & counted[holder] if len(truth) else np.zeros(shape, bool)
    wrong = holder < 0
    found = np.zeros((len(IOU_THRESHOLDS), len(truth)), bool)
    for t, row in enumerate(holder):
        found[t, row[row >= 0]] = True
    cause = np.full(shape, NO_CAUSE, np.int8)
    target = np.full(shape, -1, np.int64)
    truth_cause = np.full(found.shape, NO_CAUSE, np.int8)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        rows = np.flatnonzero(wrong[t])
        cause[t, rows], target[t, rows] = _causes(
            seen, of_track[rows], categories[rows], truth, found[t], threshold, config
        )
        left = counted & ~found[t]
        left[target[t][target[t] >= 0]] = False
        hidden = left & (seen.whole >= threshold)
        truth_cause[t, left] = _NUMBER["missed"]
        truth_cause[t, hidden] = _NUMBER["switch"]
    best = np.array([max(track.class_scores.values()) for track in tracks])
    made = VideoErrors(
        truth.video_id,
        truth.categories,
        categories,
        scores,
        right,
        wrong,
        cause,
        target,
        truth.category_ids,
        counted,
        found,
        truth_cause,
        _hidden_scores(seen, best, measured.track),
        (),
    )
    return dataclasses.replace(
        made,
        instances=tuple(
            _instance(g, made, seen, measured, of_track, positions, truth)
            for g in np.flatnonzero(counted).tolist()
        ),
    )


def _entries(
    tracks: Sequence[ClipTrack],
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, NDArray[np.int64]]:
    """(E,) track, category, score and index in the file of the entries that scoring keeps."""
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
    return (
        np.array([n for _, _, _, n in kept], np.int64),
        np.array([c for c, _, _, _ in kept], np.int64),
        np.array([-s for _, s, _, _ in kept], np.float64),
        np.array([p for _, _, p, _ in kept], np.int64),
    )


def _matches(iou: Floats, crowd: Bools) -> NDArray[np.int64]:
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


def _sightings(
    tracks: Sequence[ClipTrack], found: MaskOverlaps, truth: VideoTruth, config: AnalysisConfig
) -> _Sightings:
    num_tracks, num_truth, num_frames = len(tracks), len(truth), truth.length
    there = truth.areas[:, found.frame].T.astype(np.float64)
    frame_iou = ratio(found.intersection, found.area[:, None] + there - found.intersection)
    total_truth = truth.areas.sum(axis=1).astype(np.float64)
    shared = np.zeros((num_tracks, num_truth))
    area = np.zeros(num_tracks)
    np.add.at(shared, found.track, found.intersection)
    np.add.at(area, found.track, found.area)

    def iou(inside: Floats, pixels: Floats) -> Floats:
        return ratio(inside, pixels + total_truth - inside)

    best = np.array([max(track.class_scores.values()) for track in tracks] or [0.0])
    shows = np.full(len(found.track), -1, np.int64)
    shown_by = np.full((num_truth, num_frames), -1, np.int64)
    rows, columns = np.nonzero(frame_iou >= config.identity_iou)
    priority = np.lexsort((columns, rows, -frame_iou[rows, columns], -best[found.track[rows]]))
    for k in priority.tolist():
        r, g = int(rows[k]), int(columns[k])
        if shows[r] < 0 and shown_by[g, found.frame[r]] < 0:
            shows[r] = g
            shown_by[g, found.frame[r]] = r
    show_frames = np.zeros((num_tracks, num_truth), np.int64)
    showing = np.flatnonzero(shows >= 0)
    np.add.at(show_frames, (found.track[showing], shows[showing]), 1)
    double = np.zeros((num_tracks, num_truth), np.int64)
    taken = shown_by[columns, found.frame[rows]]
    other = (taken >= 0) & (taken != rows)
    np.add.at(double, (found.track[rows[other]], columns[other]), 1)
    belongs = np.full(num_tracks, -1, np.int64)
    for r in showing[np.argsort(found.frame[showing], kind="stable")].tolist():
        n, g = found.track[r], shows[r]
        if belongs[n] < 0 or show_frames[n, g] > show_frames[n, belongs[n]]:
            belongs[n] = g

    repaired, joined = np.zeros_like(shared), np.zeros_like(shared)
    whole = np.zeros(num_truth)
    of_track = [np.flatnonzero(found.track == n) for n in range(num_tracks)]
    for g in range(num_truth):
        given = shown_by[g][shown_by[g] >= 0]
        inside, pixels = found.intersection[given, g].sum(), found.area[given].sum()
        whole[g] = ratio(np.array([inside]), np.array([pixels + total_truth[g] - inside]))[0]
        for n in range(num_tracks):
            if not show_frames[n, g]:
                continue
            own = of_track[n][(shows[of_track[n]] < 0) | (shows[of_track[n]] == g)]
            lent = given[(found.track[given] != n) & (belongs[found.track[given]] != g)]
            for out, put_in in ((repaired, lent), (joined, given[found.track[given] != n])):
                # What shows the instance goes before the track's own mask that shows nothing.
                kept = own[~np.isin(found.frame[own], found.frame[put_in])]
                used = np.concatenate([kept, put_in])
                inside, pixels = found.intersection[used, g].sum(), found.area[used].sum()
                out[n, g] = inside / (pixels + total_truth[g] - inside)
    return _Sightings(
        iou(shared, area[:, None]),
        frame_iou,
        shows,
        shown_by,
        show_frames,
        double,
        np.bincount(found.track, minlength=num_tracks),
        repaired,
        joined,
        whole,
    )


def _causes(
    seen: _Sightings,
    of_track: NDArray[np.int64],
    category_ids: NDArray[np.int64],
    truth: VideoTruth,
    found: Bools,
    threshold: float,
    config: AnalysisConfig,
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
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


def _hidden_scores(seen: _Sightings, best: Floats, track_of_mask: NDArray[np.int64]) -> Floats:
    """(G,) mean over the frames in which it is shown of the showing track's score, or NaN.

    best:          (N,) highest score of each track
    track_of_mask: (R,)
    """
    out = np.full(len(seen.shown_by), np.nan)
    for g, row in enumerate(seen.shown_by):
        if (row >= 0).any():
            out[g] = best[track_of_mask[row[row >= 0]]].mean()
    return out


def _instance(
    g: int,
    made: VideoErrors,
    seen: _Sightings,
    found: MaskOverlaps,
    of_track: NDArray[np.int64],
    positions: NDArray[np.int64],
    truth: VideoTruth,
) -> Instance:
    """How instance g fared."""
    rows = np.flatnonzero(made.category_ids == truth.category_ids[g])
    present = np.flatnonzero(truth.areas[g])
    in_frame = np.zeros(truth.length)
    iou, entry = 0.0, None
    if len(rows) and (overlap := seen.iou[of_track[rows], g]).any():
        best = rows[overlap.argmax()]
        iou, entry = float(overlap.max()), int(positions[best])
        masks = np.flatnonzero(found.track == of_track[best])
        in_frame[found.frame[masks]] = seen.frame_iou[masks, g]
    showing = seen.shown_by[g][seen.shown_by[g] >= 0]
    track_ids = found.track[showing]
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
