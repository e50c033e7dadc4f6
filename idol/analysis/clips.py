"""Predictions clip by clip: cut from whole tracks, or read from a file and joined by mask overlap.

An offline method predicts clips. A file of clip predictions is a results file whose entries say
where their clip starts, and have one mask (or null) for every frame of the clip alone:

    [{"video_id": 1, "category_id": 3, "score": 0.9, "first_frame": 10,
      "segmentations": [{"size": [h, w], "counts": "..."}, null, ...]}, ...]

Entries of one video with the same first_frame are one clip and equally long. Clips may overlap;
`join` then makes whole tracks of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from idol.arrays import Floats, Ints
from idol.clips.association import EPSILON, ClipAssociation
from idol.config import AnalysisConfig
from idol.evaluation.overlaps import intersections
from idol.ytvis import results as results_file
from idol.ytvis.results import Entry
from idol.ytvis.truth import VideoTruth
from idol.ytvis.videos import Rle

_log = logging.getLogger(__name__)


class Span(NamedTuple):
    """The frames of a clip."""

    first: int
    length: int

    @property
    def frames(self) -> range:
        """Of the video."""
        return range(self.first, self.first + self.length)


@dataclass(frozen=True, slots=True, eq=False)
class ClipTrack:
    """What a method put together within one clip: masks, and the classes it was submitted under.

    masks:        frame of the video -> mask; empty where it was measured without its masks
    areas:        frame of the video -> its pixels, > 0; frames without any pixel are absent
    positions:    category_id -> index of the entry; it decides between equal scores
    """

    clip: Span
    masks: dict[int, Rle]
    areas: dict[int, int]
    class_scores: dict[int, float]
    positions: dict[int, int]


def are_clips(entries: Sequence[Any], name: str = "results") -> bool:
    """Whether every entry says its first_frame. Raises: ValueError: some do, some do not."""
    have = [isinstance(entry, Mapping) and "first_frame" in entry for entry in entries]
    if any(have) and not all(have):
        raise ValueError(
            f"{name}[{have.index(False)}] has no 'first_frame', but others have. Clip predictions "
            "say it in every entry, whole tracks in none; keep the two in files of their own."
        )
    return any(have)


def tracks_of(
    entries: Sequence[Mapping[str, Any]], indices: Sequence[int], truth: VideoTruth
) -> list[ClipTrack]:
    """One video's entries as tracks: those with equal masks are one track under several classes.

    entries: of either form, with fields checked (`results.check_ids`)
    indices: positions in the whole file, for messages and for order
    truth:   of the video; its instances are not looked at
    returns: tracks by first position. A whole track has the clip (0, T)
    Raises:
        ValueError: an entry is malformed; the message has its index.
    """
    spans = [_span(e, i, truth) for e, i in zip(entries, indices, strict=True)]
    lengths: dict[int, tuple[int, int]] = {}
    for span, index in zip(spans, indices, strict=True):
        length, earlier = lengths.setdefault(span.first, (span.length, index))
        if span.length != length:
            raise ValueError(
                f"results[{index}].segmentations has {span.length} entries, results[{earlier}] of "
                f"the same video and first_frame {span.first} has {length}. A clip has one length."
            )
    full = []
    for entry, span in zip(entries, spans, strict=True):
        after = truth.length - span.first - span.length
        masks = [*[None] * span.first, *entry["segmentations"], *[None] * after]
        full.append({**entry, "segmentations": masks} if "first_frame" in entry else entry)
    read, areas = results_file.check_video(full, indices, truth)
    tracks: dict[tuple[Any, ...], ClipTrack] = {}
    copies: Counter[tuple[Any, ...]] = Counter()
    for n, (entry, index, span) in enumerate(zip(entries, indices, spans, strict=True)):
        category_id, score = int(entry["category_id"]), float(entry["score"])
        seen = np.flatnonzero(areas[n]).tolist()
        shown = {t: mask for t in seen if (mask := read[n][t]) is not None}
        key: tuple[Any, ...] = (span, *((t, mask["counts"]) for t, mask in shown.items()))
        # The same masks under the same class again are another track: a duplicate.
        copy = copies[*key, category_id]
        copies[*key, category_id] += 1
        new = ClipTrack(span, shown, {t: int(areas[n, t]) for t in shown}, {}, {})
        track = tracks.setdefault((*key, copy), new)
        track.class_scores[category_id] = score
        track.positions[category_id] = index
    return list(tracks.values())


def _span(entry: Mapping[str, Any], index: int, truth: VideoTruth) -> Span:
    if "first_frame" not in entry:
        return Span(0, truth.length)
    first, length = entry["first_frame"], len(entry["segmentations"])
    if not isinstance(first, Integral) or isinstance(first, bool) or int(first) < 0:
        raise ValueError(
            f"results[{index}].first_frame must be a whole number from 0, got {first!r}"
        )
    if not length or int(first) + length > truth.length:
        raise ValueError(
            f"results[{index}] is a clip of {length} frames from frame {first} on, but video "
            f"{truth.video_id} has the frames 0 to {truth.length - 1}. Frames count from 0, and "
            "segmentations has one entry for every frame of the clip."
        )
    return Span(int(first), length)


# ---- clip matching ------------------------------------------------------------------------------


def identities(tracks: Sequence[ClipTrack], config: AnalysisConfig) -> Ints:
    """(N,) identity of each track, from 0 in order of appearance: IFC's clip matching.

    As idol.clips.ClipAssociation has it, of masks that are 0 or 1: a track of the next clip scores
    with an identity the mean, over the clips that detected it and share frames with this one, of
    the volumetric mask IoU over the shared frames. Pairs at or below config.clip_match_iou are not
    joined. Classes and scores take no part (paper Sec. 3.3: "using the predicted masks of
    overlapping frames").
    """
    clips = sorted({track.clip for track in tracks})
    out = np.full(len(tracks), -1, np.int64)
    overlap = partial(_mask_iou, tracks)
    association: ClipAssociation[Sequence[int]] = ClipAssociation(overlap, config.clip_match_iou)
    covered: set[int] = set()
    apart = 0
    for clip in clips:
        here = [n for n, track in enumerate(tracks) if track.clip == clip]
        apart += bool(covered) and covered.isdisjoint(clip.frames)
        out[here] = association.update(clip.frames, len(here), here)
        covered |= set(clip.frames)
    if apart:
        message = "%d of %d clips share no frame with earlier ones: not joined"
        _log.warning(message, apart, len(clips))
    return out


def _mask_iou(
    tracks: Sequence[ClipTrack], earlier: Sequence[int], later: Sequence[int], frames: Sequence[int]
) -> Floats:
    """(n, N) IoU of the tracks of two clips over these frames."""
    shared = np.zeros((len(earlier), len(later)))
    before, after = (
        np.array([sum(tracks[n].areas.get(t, 0) for t in frames) for n in rows], np.float64)
        for rows in (earlier, later)
    )
    for t in frames:
        rows, columns = (
            [k for k, n in enumerate(some) if t in tracks[n].masks] for some in (earlier, later)
        )
        if rows and columns:
            own = [tracks[earlier[k]].masks[t] for k in rows]
            areas = np.array([tracks[earlier[k]].areas[t] for k in rows])
            others = [tracks[later[k]].masks[t] for k in columns]
            shared[np.ix_(rows, columns)] += intersections(own, areas, others)
    found: Floats = shared / (before[:, None] + after - shared + EPSILON)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some frames of a clip track, ascending, as they were given to one identity."""

    track: ClipTrack
    frames: Sequence[int]


def joined_entries(groups: Iterable[Sequence[Part]], video_id: int, length: int) -> list[Entry]:
    """Results entries of joined tracks, the parts of each in a group.

    A frame's mask is that of its part. Where several overlapping clips have one, a pixel belongs
    if more than half of them say so, a clip that covers the frame without a mask included: IFC's
    mean of logits above 0, of masks that know only yes and no.

    The score of a class is the mean over the frames in which the joined track has a mask, each with
    the score that its part's track had for the class (0 where it was not submitted under it). Of
    these classes the best are kept: as many as the part with most classes has.

    They stand by the first entry from which each came: tracks that nothing was done to keep masks,
    scores and order.
    """
    entries: list[tuple[int, Entry]] = []
    for parts in groups:
        whole: list[Rle | None] = [None] * length
        by_frame: dict[int, list[Rle]] = {}
        for part in parts:
            for t in part.frames:
                if t in part.track.masks:
                    by_frame.setdefault(t, []).append(part.track.masks[t])
        for t, found in by_frame.items():
            covering = sum(t in part.frames for part in parts)
            whole[t] = _majority(found, covering)
        for category_id, score, position in classes(parts):
            entry: Entry = {"video_id": video_id, "category_id": category_id, "score": score}
            entries.append((position, {**entry, "segmentations": whole}))
    return [entry for _, entry in sorted(entries, key=lambda row: row[0])]


def classes(parts: Sequence[Part]) -> list[tuple[int, float, int]]:
    """(category_id, mean score, position) of a joined track's classes, as of `joined_entries`."""
    positions: dict[int, int] = {}
    for part in parts:
        for category_id, position in part.track.positions.items():
            positions[category_id] = min(position, positions.get(category_id, position))
    first = parts[0].track.class_scores
    if all(part.track.class_scores == first for part in parts):
        return [(c, score, positions[c]) for c, score in first.items()]
    seen = [sum(t in part.track.areas for t in part.frames) for part in parts]
    # Parts without a mask weigh nothing, unless none has one.
    weights = np.array(seen if any(seen) else [1] * len(parts), np.float64)
    ids = sorted(positions)
    scores = np.array([[part.track.class_scores.get(c, 0.0) for c in ids] for part in parts])
    mean = weights @ scores / weights.sum()
    most = max(len(part.track.class_scores) for part in parts)
    kept = sorted(range(len(ids)), key=lambda k: (-mean[k], ids[k]))[:most]
    return [(ids[k], float(mean[k]), positions[ids[k]]) for k in kept]


def _majority(found: Sequence[Rle], voters: int) -> Rle | None:
    """Pixels that more than half of the voters have; None if there are none."""
    if len(found) == voters == 1:
        return found[0]
    from idol.masks import rle  # with torch, which whole tracks do not need

    size: list[int] = list(found[0]["size"])
    votes = rle.decode_masks([mask["counts"] for mask in found], (size[0], size[1]))
    pixels = 2 * votes.sum(axis=0, dtype=np.int64) > voters
    return {"size": size, "counts": rle.encode_masks(pixels[None])[0]} if pixels.any() else None


def whole_tracks(tracks: Sequence[ClipTrack], identities: Ints) -> list[list[Part]]:
    """The parts of every track that is joined by identity; identities: (N,), as of `identities`."""
    groups: dict[int, list[Part]] = {}
    for track, identity in zip(tracks, identities.tolist(), strict=True):
        groups.setdefault(identity, []).append(Part(track, track.clip.frames))
    return list(groups.values())


def join(
    entries: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    truth: VideoTruth,
    config: AnalysisConfig,
) -> list[Entry]:
    """One video's clip predictions as whole tracks, by clip matching; arguments as of `tracks_of`.

    Whole tracks come back as they were.
    """
    tracks = tracks_of(entries, indices, truth)
    groups = whole_tracks(tracks, identities(tracks, config))
    return joined_entries(groups, truth.video_id, truth.length)
