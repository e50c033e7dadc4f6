"""Oracle experiments: how much of the error is segmentation, and how much is association?

The paper (Sec. 4.3, Tables 1 and 2, Figures 1 and 3) asks this of any method's predictions:

    predicted     the method associates everything itself
    clip oracle   the true identities are given between clips; within a clip of L frames the method
                  associates itself
    frame oracle  the true identities are given within and between clips, so that the score depends
                  on the quality of the masks alone
    upper bound   no association of these masks scores higher (`idol.evaluation.upper_bound`)

From predicted to the upper bound is what association loses: the frame oracle goes through the
video greedily, frame by frame, and can score below the prediction. From the frame oracle to the
clip oracle is what the method's association within clips of that length loses.

What "given" means here. A *piece* is what one predicted track has within one clip (frame oracle:
within one frame). In each clip, pieces and true instances are paired one to one, the highest
spatio-temporal IoU within the clip first, down to `AnalysisConfig.identity_iou`; a paired piece
gets its instance's identity. A piece that shows no instance has no true identity to be given: it
stays with the method's track, that is with the instance which most frames of that track were given
to, if this instance has no piece in the clip, and otherwise in what remains of the track. Pieces of
one identity become one track, with the mean of their scores (`clips.joined_entries`).

So the oracle changes identities and nothing else: every predicted mask is in exactly one of its
tracks. It follows that clips of one frame are the frame oracle, and clips of the whole video are
the prediction itself. False positives remain, one per track as the method has them.

For predictions that come clip by clip (`clips.py`), "predicted" is clip matching, and L cuts
clips that are longer. Stored detections (`stored_prediction`) give the same numbers as their
results file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from idol.analysis import clips
from idol.analysis.clips import ClipTrack, Part, Span
from idol.arrays import Floats, Ints
from idol.config import AnalysisConfig, TrackerConfig
from idol.evaluation import average_precision, matching, upper_bound
from idol.evaluation.average_precision import Metrics
from idol.evaluation.matching import VideoMatches
from idol.evaluation.overlaps import frame_overlap, ratio, truth_of_frame
from idol.evaluation.stored_overlaps import VideoOverlaps, entry_categories
from idol.ytvis import results as results_file
from idol.ytvis import truth as truth_file
from idol.ytvis.truth import VideoTruth

if TYPE_CHECKING:  # with torch, which scoring a file does not need
    from idol.structures import Track

CLIP_LENGTHS = (1, 3, 5, 10, 20, 30)
"""The paper's (Table 2)."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskOverlaps:
    """How every mask of a video's tracks overlaps the truth in its frame. R masks, G instances.

    track:        (R,)   position of the track
    area:         (R,)   pixels
    intersection: (R, G) pixels shared with each instance
    """

    track: Ints
    frame: Ints
    area: Floats
    intersection: Floats


def overlaps(tracks: Sequence[ClipTrack], truth: VideoTruth) -> MaskOverlaps:
    """Measure all masks of one video against the truth, once for every experiment."""
    places = sorted((t, n) for n, track in enumerate(tracks) for t in track.masks)
    by_frame: dict[int, list[int]] = {}
    for t, n in places:
        by_frame.setdefault(t, []).append(n)
    # One array of the final size: with many tracks and instances a second one would not fit.
    area, intersection = np.zeros(len(places)), np.zeros((len(places), len(truth)))
    done = 0
    for t, rows in by_frame.items():
        found = frame_overlap(
            [tracks[n].masks[t]["counts"] for n in rows], truth_of_frame(truth, t), truth.size, t
        )
        here = slice(done, done := done + len(rows))
        area[here], intersection[here] = found.area, found.intersection
    return MaskOverlaps(
        np.array([n for _, n in places], np.int64),
        np.array([t for t, _ in places], np.int64),
        area,
        intersection,
    )


@dataclass(frozen=True, slots=True, eq=False)
class VideoPrediction:
    """One video's predictions, measured once: any oracle is arithmetic on them.

    identities: (N,) the method's own identity of each track, by clip matching
    """

    tracks: list[ClipTrack]
    identities: Ints
    overlaps: MaskOverlaps


def prediction(
    entries: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    truth: VideoTruth,
    config: AnalysisConfig,
) -> VideoPrediction:
    """Read and measure one video's entries, arguments as of `clips.tracks_of`."""
    tracks = clips.tracks_of(entries, indices, truth)
    return VideoPrediction(tracks, clips.identities(tracks, config), overlaps(tracks, truth))


def stored_prediction(
    known: VideoOverlaps,
    tracks: Sequence[Track],
    category_ids: Sequence[int],
    tracker: TrackerConfig,
) -> VideoPrediction:
    """The same from stored overlaps, without a mask; arguments as of `VideoOverlaps.matches`."""
    whole = Span(0, known.truth.length)
    entries = results_file.class_entries(tracks, tracker)
    made: dict[int, ClipTrack] = {}
    used: dict[int, Ints] = {}
    categories = entry_categories(entries, category_ids).tolist()
    for position, (entry, category_id) in enumerate(zip(entries, categories, strict=True)):
        if entry.track not in made:
            frames, rows = known.rows(tracks[entry.track])
            seen = known.area[rows] > 0
            used[entry.track] = rows[seen]
            areas = dict(zip(frames[seen].tolist(), known.area[rows[seen]].tolist(), strict=True))
            made[entry.track] = ClipTrack(whole, {}, areas, {}, {})
        made[entry.track].class_scores[category_id] = entry.score
        made[entry.track].positions[category_id] = position
    rows = np.concatenate([np.zeros(0, np.int64), *used.values()])
    frame_of_row = np.repeat(np.arange(whole.length), np.diff(known.first))
    measured = MaskOverlaps(
        np.repeat(np.arange(len(used)), [len(r) for r in used.values()]),
        frame_of_row[rows],
        known.area[rows],
        known.intersection[rows],
    )
    return VideoPrediction(list(made.values()), np.arange(len(made)), measured)


def oracle(
    predicted: VideoPrediction, truth: VideoTruth, length: int, config: AnalysisConfig
) -> list[list[Part]]:
    """The parts of every track with true identities between clips of `length` >= 1 frames.

    A length of 1 is the frame oracle.
    """
    if length < 1:
        raise ValueError(f"a clip has at least 1 frame, got a clip length of {length}")
    tracks, found = predicted.tracks, predicted.overlaps
    pieces: list[_Piece] = []
    of_row = np.full(len(found.track), -1, np.int64)
    for n, (track, rows) in enumerate(zip(tracks, _rows_of(predicted), strict=True)):
        cut = (found.frame[rows] - track.clip.first) // length
        # Cuts without a mask carry nothing, but a track that has none at all stays.
        for k in np.unique(cut).tolist() if len(rows) else [0]:
            of_row[rows[cut == k]] = len(pieces)
            part = Part(track, track.clip.frames[k * length : (k + 1) * length])
            pieces.append(_Piece(part, (*track.clip, k), int(predicted.identities[n])))
    return _groups(pieces, _given(pieces, of_row, found, truth, config))


def _rows_of(predicted: VideoPrediction) -> list[Ints]:
    """Rows of the overlaps of every track."""
    order = np.argsort(predicted.overlaps.track, kind="stable")
    starts = np.searchsorted(
        predicted.overlaps.track[order], np.arange(1, len(predicted.tracks) + 1)
    )
    return np.split(order, starts)[: len(predicted.tracks)]


def matched(
    predicted: VideoPrediction, groups: Sequence[Sequence[Part]], truth: VideoTruth
) -> VideoMatches:
    """Match tracks that are joined of these parts, as `match_video` does their entries."""
    if len({track.clip for track in predicted.tracks}) > 1:  # may overlap: pixels are voted on
        entries = clips.joined_entries(groups, truth.video_id, truth.length)
        return matching.match_video(entries, truth)
    found = predicted.overlaps
    row_of = {
        track: dict(zip(found.frame[rows].tolist(), rows.tolist(), strict=True))
        for track, rows in zip(predicted.tracks, _rows_of(predicted), strict=True)
    }
    shared, total = np.zeros((len(groups), len(truth))), np.zeros(len(groups))
    average = np.zeros(len(groups))
    chosen: list[tuple[int, int, int, float]] = []  # position, group, category_id, score
    for k, parts in enumerate(groups):
        rows = [row_of[p.track][t] for p in parts for t in p.frames if t in p.track.areas]
        shared[k] = found.intersection[rows].sum(axis=0)
        total[k] = found.area[rows].sum()
        average[k] = truth_file.average_area(found.area[rows][None])[0]
        chosen += [(position, k, c, score) for c, score, position in clips.classes(parts)]
    chosen.sort(key=lambda row: row[0])
    iou = ratio(shared, total[:, None] + truth.areas.sum(axis=1) - shared)
    of_group = np.array([k for _, k, _, _ in chosen], np.int64)
    return matching.match_entries(
        truth,
        np.array([c for _, _, c, _ in chosen], np.int64),
        np.array([score for _, _, _, score in chosen], np.float64),
        average[of_group],
        iou[of_group],
        len(chosen) > 0,
        compat=False,
    )


class _Piece(NamedTuple):
    """What one track of the identity `source` has in one cell: a clip, and the cut of it."""

    part: Part
    cell: tuple[int, int, int]
    source: int

    @property
    def score(self) -> float:
        return max(self.part.track.class_scores.values())


def _given(
    pieces: Sequence[_Piece],
    of_row: Ints,
    found: MaskOverlaps,
    truth: VideoTruth,
    config: AnalysisConfig,
) -> list[int]:
    """Position of the instance that each piece is given to, -1 for none."""
    # Only pairs that share a pixel: a table of all pieces and instances would not fit.
    of_pair, at = np.nonzero(found.intersection)
    pairs, place = np.unique(of_row[of_pair] * len(truth) + at, return_inverse=True)
    rows, columns = np.divmod(pairs, max(1, len(truth)))
    shared = np.bincount(place, found.intersection[of_pair, at], len(pairs))
    area = np.bincount(of_row, found.area, len(pieces))
    first = np.array([piece.part.frames[0] for piece in pieces], np.int64)
    last = np.array([piece.part.frames[-1] for piece in pieces], np.int64)
    before = np.pad(truth.areas.cumsum(axis=1), ((0, 0), (1, 0)))
    there = before[columns, last[rows] + 1] - before[columns, first[rows]]
    iou = shared / (area[rows] + there - shared)
    best = np.array([piece.score for piece in pieces])
    given = [-1] * len(pieces)
    taken: set[tuple[tuple[int, int, int], int]] = set()
    # Equal overlaps: the higher score, then the earlier track.
    for k in np.lexsort((columns, rows, -best[rows], -iou)):
        if iou[k] < config.identity_iou:
            break
        n, g = int(rows[k]), int(columns[k])
        if given[n] < 0 and (pieces[n].cell, g) not in taken:
            given[n] = g
            taken.add((pieces[n].cell, g))
    return given


def _groups(pieces: Sequence[_Piece], given: Sequence[int]) -> list[list[Part]]:
    """The pieces of every identity: those given to it, and those that follow the method."""
    frames: dict[int, Counter[int]] = {}  # source -> instance -> frames given to it
    for (part, _, source), g in zip(pieces, given, strict=True):
        if g >= 0:
            count = sum(t in part.track.areas for t in part.frames)
            frames.setdefault(source, Counter())[g] += count
    # Of equal numbers of frames the instance given first, as a dict keeps that order.
    follows = {source: max(row, key=row.__getitem__) for source, row in frames.items()}
    taken = {(piece.cell, g) for piece, g in zip(pieces, given, strict=True)}
    identity = [
        (True, piece.source) if g < 0 else (False, g)
        for piece, g in zip(pieces, given, strict=True)
    ]
    rest = [k for k, g in enumerate(given) if g < 0]
    for k in sorted(rest, key=lambda k: -pieces[k].score):
        g = follows.get(pieces[k].source, -1)
        if g >= 0 and (pieces[k].cell, g) not in taken:
            taken.add((pieces[k].cell, g))
            identity[k] = (False, g)
    groups: dict[tuple[bool, int], list[Part]] = {}
    for piece, key in zip(pieces, identity, strict=True):
        groups.setdefault(key, []).append(piece.part)
    return list(groups.values())


@dataclass(frozen=True, slots=True, eq=False)
class VideoOracles:
    """Matches of one video in every experiment; fields as of `OracleExperiments`."""

    predicted: VideoMatches
    frame: VideoMatches
    clips: dict[int, VideoMatches]
    bound: VideoMatches


@dataclass(frozen=True, slots=True, eq=False)
class OracleExperiments:
    """Metrics of a whole data set in every experiment (paper Tables 1 and 2).

    predicted: the method's own association
    frame:     frame oracle
    clips:     clip length -> clip oracle
    bound:     upper bound: the best that any association of the same masks can reach
    """

    predicted: Metrics
    frame: Metrics
    clips: dict[int, Metrics]
    bound: Metrics

    @property
    def lost(self) -> float:
        """AP that association loses, at most; -1 where there is no truth to find."""
        best = self.bound.stats["AP"]
        return -1.0 if best < 0 else best - self.predicted.stats["AP"]

    def curve(self) -> list[tuple[int, float]]:
        """(clip length, AP) of the clip oracle, ascending."""
        return [(length, self.clips[length].stats["AP"]) for length in sorted(self.clips)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; clip lengths become strings."""
        return {
            "predicted": dict(self.predicted.stats),
            "frame": dict(self.frame.stats),
            "clips": {str(n): dict(self.clips[n].stats) for n in sorted(self.clips)},
            "bound": dict(self.bound.stats),
            "lost": self.lost,
        }


def match_oracles(
    predicted: VideoPrediction,
    truth: VideoTruth,
    lengths: Sequence[int],
    config: AnalysisConfig,
) -> VideoOracles:
    """All experiments on one video; clip lengths are >= 1."""
    longest = max((track.clip.length for track in predicted.tracks), default=1)
    # All lengths from the longest clip on cut nothing.
    joined = {
        n: oracle(predicted, truth, n, config)
        for n in {1, *(min(length, longest) for length in lengths)}
    }
    own = clips.whole_tracks(predicted.tracks, predicted.identities)
    scored = {n: matched(predicted, groups, truth) for n, groups in joined.items()}
    found = _candidates(predicted, [own, *joined.values()], truth)
    return VideoOracles(
        matched(predicted, own, truth),
        scored[1],
        {n: scored[min(n, longest)] for n in sorted(set(lengths))},
        upper_bound.match(truth, found.frame, found.area, found.intersection),
    )


def _candidates(
    predicted: VideoPrediction, made: Sequence[Sequence[Sequence[Part]]], truth: VideoTruth
) -> MaskOverlaps:
    """The masks that an association has to choose from; made: the tracks of every experiment."""
    if len({track.clip for track in predicted.tracks}) < 2:
        return predicted.overlaps
    # Where clips overlap, joined tracks have masks that no single clip has.
    entries = [e for g in made for e in clips.joined_entries(g, truth.video_id, truth.length)]
    joined = clips.tracks_of(entries, range(len(entries)), truth)
    return overlaps([*predicted.tracks, *joined], truth)


def summarise(videos: Sequence[VideoOracles]) -> OracleExperiments:
    """Reduce the experiments of all videos. Raises: ValueError: there is no video."""
    if not videos:
        raise ValueError("there is no video to analyse: the truth lists none")
    return OracleExperiments(
        average_precision.summarise(v.predicted for v in videos),
        average_precision.summarise(v.frame for v in videos),
        {n: average_precision.summarise(v.clips[n] for v in videos) for n in videos[0].clips},
        average_precision.summarise(v.bound for v in videos),
    )
