"""Tracks to YouTube-VIS results and back: one entry per track and class, one mask per frame."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from idol.arrays import Ints, host
from idol.config import TrackerConfig
from idol.files import whole_file
from idol.masks import rle
from idol.spool import Mapped, Spool, picked
from idol.ytvis import lazy_rows
from idol.ytvis.repairs import MAX_ID
from idol.ytvis.truth import VideoTruth
from idol.ytvis.videos import Rle

if TYPE_CHECKING:  # with torch, which scoring a file does not need
    from idol.structures import FrameDetections, Track

Entry = dict[str, Any]
"""{"video_id", "category_id", "score", "segmentations": [{"size", "counts"} or None, ...]}"""

MAX_TRACKS = 100
"""Entries of a video and category that count, those of the highest scores: the servers' rule."""


class ClassEntry(NamedTuple):
    """A track under one class, which becomes one entry: track (position), label, mean score."""

    track: int
    label: int
    score: float


def class_entries(tracks: Sequence[Track], config: TrackerConfig) -> list[ClassEntry]:
    """Which classes every track is written under, and in which order.

    With config.multi_class: each class whose mean score exceeds class_score_threshold (released:
    APPLY_CLS_THRES); otherwise the best class, whatever its score. Order: tracks as given, then
    labels ascending; among equal scores the evaluator prefers the earlier.
    """
    chosen = []
    for position, track in enumerate(tracks):
        scores = host(track.class_scores)
        if config.multi_class:
            # Compared in float32: the threshold is rounded to the precision of the scores.
            labels = np.flatnonzero(scores > np.float32(config.class_score_threshold)).tolist()
        else:
            labels = [int(scores.argmax())]
        chosen += [ClassEntry(position, label, float(scores[label])) for label in labels]
    return chosen


def entry(
    video_id: int,
    category_id: int,
    score: float,
    masks: Iterable[bytes | None],
    size: tuple[int, int],
) -> Entry:
    """One entry: masks are compressed RLE counts of this (height, width), None where absent."""
    return {
        "video_id": int(video_id),
        "category_id": int(category_id),
        "score": score,
        "segmentations": [
            None if counts is None else {"size": list(size), "counts": counts.decode("ascii")}
            for counts in masks
        ],
    }


def masks_of_tracks(
    tracks: Sequence[Track],
    frames: Iterable[tuple[int, Sequence[bytes]]],
    *,
    video_id: int,
    length: int,
    store: Spool[bytes] | None = None,
) -> list[Sequence[bytes | None]]:
    """The masks of one video's tracks, collected frame by frame so that few are held at once.

    frames:  (frame index, masks of its detections); frames that no track uses may be missing
    length:  frames in the video
    store:   gets the masks, which then are not in memory
    returns: for every track `length` masks, None where it is absent (the released code writes an
             all-zero mask; both score the same)
    Raises: ValueError: a track is on a frame, or on a detection of one, that is not there.
    """
    wanted: dict[int, list[tuple[int, int]]] = {}  # frame index -> (position of the track, row)
    for position, track in enumerate(tracks):
        for frame_index, row in track.detections.items():
            if not 0 <= frame_index < length:
                raise ValueError(
                    f"track {track.track_id} of video {video_id} is on frame {frame_index}, but "
                    f"that video has {length} frames"
                )
            wanted.setdefault(frame_index, []).append((position, row))
    kept: Any = [] if store is None else store
    places = [array("q", [-1]) * length for _ in tracks]  # in kept; -1: absent

    def missing(frame_index: int, position: int, row: int, held: str) -> ValueError:
        return ValueError(
            f"track {tracks[position].track_id} of video {video_id} needs the mask of detection "
            f"{row} on frame {frame_index}, but that frame {held}"
        )

    for frame_index, masks in frames:
        for position, row in wanted.pop(frame_index, ()):
            if not 0 <= row < len(masks):
                raise missing(frame_index, position, row, f"carries {len(masks)} masks")
            places[position][frame_index] = len(kept)
            kept.append(masks[row])
    for frame_index, ((position, row), *_) in wanted.items():
        raise missing(frame_index, position, row, "is not given")
    return [picked(kept, of) for of in places]


def to_ytvis(
    tracks: Sequence[Track],
    frames: Iterable[FrameDetections],
    *,
    video_id: int,
    size: tuple[int, int],
    length: int,
    category_ids: Sequence[int],
    config: TrackerConfig,
) -> list[Entry]:
    """One video's tracks as entries of a YouTube-VIS results file (specification 4.6).

    tracks:       of one video
    frames:       its FrameDetections with masks; frames that no track uses may be missing
    video_id:     of the data set
    size:         (height, width) of the original frames, which the masks have
    length:       frames in the video
    category_ids: (K,) the data set's category_id of every label
    config:       multi_class and class_score_threshold
    returns:      entries in the order of `class_entries`
    Raises: ValueError: tracks, frames, length and classes do not fit together.
    """
    for track in tracks:
        if len(track.class_scores) != len(category_ids):
            raise ValueError(
                f"track {track.track_id} of video {video_id} has {len(track.class_scores)} class "
                f"scores, but there are {len(category_ids)} category_ids"
            )
    given = ((frame.frame_index, frame.masks) for frame in frames)
    masks = masks_of_tracks(tracks, given, video_id=video_id, length=length)
    return [
        entry(video_id, category_ids[chosen.label], chosen.score, masks[chosen.track], size)
        for chosen in class_entries(tracks, config)
    ]


def write(path: str | Path, entries: Iterable[Mapping[str, Any]]) -> int:
    """Write a results file: the same entries give the same bytes, and no half file is ever seen.

    Entries are sorted by video, category and descending score. Equal scores keep their order, as
    it decides ties when scoring; entries of one video must therefore come in a fixed order.

    entries: any number of them; one is in memory at a time
    returns: their number
    Raises: ValueError: a score is not finite, or a mask is no compressed RLE.
    """
    videos, categories, scores = array("q"), array("q"), array("d")

    def lines() -> Iterator[str]:
        for index, given in enumerate(entries):
            plain = _plain(given, index)
            videos.append(plain["video_id"])
            categories.append(plain["category_id"])
            scores.append(-plain["score"])
            yield json.dumps(plain, sort_keys=True, separators=(",", ":"))

    spool = Spool(lines())
    # One entry per line: as valid as any JSON, and lines of two runs can be compared.
    with whole_file(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write("[")
        for index, place in enumerate(np.lexsort((scores, categories, videos)).tolist()):
            file.write(",\n" if index else "\n")
            file.write(spool[place])
        file.write("\n]\n")
    return len(spool)


def _plain(given: Mapping[str, Any], index: int) -> Entry:
    """The four fields of an entry, as plain JSON types."""
    _check_fields(given, index, compat=False)
    masks = [
        _mask(mask, f"results[{index}].segmentations[{frame}]")
        for frame, mask in enumerate(given["segmentations"])
    ]
    return {
        "video_id": int(given["video_id"]),
        "category_id": int(given["category_id"]),
        "score": float(given["score"]),
        "segmentations": [
            None if mask is None else {**mask, "counts": mask["counts"].decode("ascii")}
            for mask in masks
        ],
    }


def read(source: str | Path | list[Any]) -> Sequence[Entry]:
    """Open a results file, or take the parsed list; `check_video` looks at the entries.

    returns: of a file, each entry is parsed when it is asked for; ValueError: it is not JSON
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not a list.
    """
    entries: Any = source
    if isinstance(source, str | Path):
        entries = lazy_rows.load_list(Path(source), "results")
    if not isinstance(entries, list | Mapped):
        truth = isinstance(entries, Mapping) and "videos" in entries
        hint = " (Is it the truth? That is the other argument.)" if truth else ""
        raise ValueError(f"results must be a JSON list, got {type(entries).__name__}.{hint}")
    return entries


def check_ids(
    entry: Any, index: int, videos: Iterable[int], categories: Iterable[int], *, compat: bool
) -> None:
    """Raise ValueError, naming the entry by its index, unless its fields and ids are known.

    compat: NaN scores and categories unknown to the truth pass, as in the official evaluator.
    """
    _check_fields(entry, index, compat=compat)
    if entry["video_id"] not in videos:
        raise ValueError(
            f"results[{index}] has video_id {entry['video_id']}, which the truth does not know. "
            "Are results and truth of the same split?"
        )
    if entry["category_id"] not in categories and not compat:
        known = ", ".join(map(str, sorted(categories)))
        raise ValueError(
            f"results[{index}] has category_id {entry['category_id']}, but the truth has {known}. "
            "Were labels written without mapping them back to the data set's category ids?"
        )


def _check_fields(entry: Any, index: int, *, compat: bool) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"results[{index}] must be an object, got {str(entry)[:60]!r}")
    for key in ("video_id", "category_id"):
        value = entry.get(key)
        if not isinstance(value, Integral) or isinstance(value, bool) or abs(int(value)) > MAX_ID:
            raise ValueError(f"results[{index}].{key} must be a whole number, got {value!r:.60}")
    score = entry.get("score")
    if not isinstance(score, Real) or isinstance(score, bool):
        raise ValueError(f"results[{index}].score must be a number, got {score!r:.60}")
    # JSON has whole numbers beyond every float.
    if (isinstance(score, int) and abs(score) > MAX_ID) or not (compat or math.isfinite(score)):
        raise ValueError(f"results[{index}].score must be finite, got {score!s:.60}")
    if not isinstance(entry.get("segmentations"), list | tuple):
        raise ValueError(
            f"results[{index}].segmentations must be a list with one mask or null per frame, "
            f"got {type(entry.get('segmentations')).__name__}"
        )


def _mask(segmentation: Any, where: str) -> Rle | None:
    """One frame's mask; unlike truth, results hold compressed RLE only."""
    if segmentation is None:
        return None
    if isinstance(segmentation, list) or (
        isinstance(segmentation, Mapping) and isinstance(segmentation.get("counts"), list)
    ):
        raise ValueError(
            f"{where} must be a compressed RLE or null, got a polygon or a list of runs. "
            "pycocotools.mask.frPyObjects compresses either."
        )
    try:
        return rle.compress(segmentation, (1, 1))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def masks_of_video(
    entries: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    truth: VideoTruth,
    *,
    compat: bool = False,
) -> list[list[Rle | None]]:
    """The masks of one video's N entries, of the video's length and size; runs are not read yet.

    entries: with fields checked (`check_ids`)
    indices: (N,) positions in the results file, for messages
    compat:  accept lists that are too short or too long, and masks of another size
    returns: N lists of T masks or None; in compat mode a list is as long as the entry's
    Raises: ValueError: names the entry's index and frame.
    """
    masks: list[list[Rle | None]] = []
    size = list(truth.size)
    for entry, index in zip(entries, indices, strict=True):
        segmentations = entry["segmentations"]
        if len(segmentations) != truth.length and not compat:
            raise ValueError(
                f"results[{index}].segmentations has {len(segmentations)} entries, but video "
                f"{truth.video_id} has {truth.length} frames. Write null where the track is absent."
            )
        track: list[Rle | None] = []
        for frame, segmentation in enumerate(segmentations):
            if segmentation is None:
                track.append(None)
                continue
            if segmentation.__class__ is dict and segmentation.get("size") == size:
                # The short way for the usual mask: there are hundreds of thousands.
                counts = segmentation.get("counts")
                if counts.__class__ is str and counts.isascii():
                    track.append({"size": size, "counts": counts.encode("ascii")})
                    continue
                if counts.__class__ is bytes:
                    track.append({"size": size, "counts": counts})
                    continue
            mask = _mask(segmentation, f"results[{index}].segmentations[{frame}]")
            if mask is not None and tuple(mask["size"]) != truth.size and not compat:
                raise ValueError(
                    f"results[{index}].segmentations[{frame}] has size {list(mask['size'])}, but "
                    f"video {truth.video_id} is {list(truth.size)} (height, width)"
                )
            track.append(mask)
        masks.append(track)
    return masks


def check_video(
    entries: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    truth: VideoTruth,
    *,
    compat: bool = False,
) -> tuple[list[list[Rle | None]], Ints]:
    """As `masks_of_video`, also with the masks' runs read.

    returns: the masks; (N, T) their areas in pixels, 0 where absent. In compat mode there is room
             for the longest list
    Raises: ValueError: names the entry's index and frame.
    """
    masks = masks_of_video(entries, indices, truth, compat=compat)
    areas, wrong = rle.check_tracks(masks, max([truth.length, *map(len, masks)]))
    if wrong is not None:
        raise unreadable(masks, indices, *wrong)
    return masks, areas


def unreadable(
    masks: Sequence[Sequence[Rle | None]], indices: Sequence[int] | None, n: int, frame: int
) -> ValueError:
    """The error for a mask whose runs cannot be read, by its entry and frame."""
    mask, index = masks[n][frame], n if indices is None else indices[n]
    return ValueError(
        f"results[{index}].segmentations[{frame}] is no readable RLE: its runs do not "
        f"add up to the pixels of its size {None if mask is None else mask['size']}"
    )
