"""Tracks to YouTube-VIS results and back: one entry per track and class, one mask per frame."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from idol.config import TrackerConfig
from idol.files import load_json
from idol.masks import rle
from idol.ytvis.truth import VideoTruth
from idol.ytvis.videos import Rle

if TYPE_CHECKING:  # with torch, which scoring a file does not need
    from idol.structures import FrameDetections, Track

Entry = dict[str, Any]
"""{"video_id", "category_id", "score", "segmentations": [{"size", "counts"} or None, ...]}"""

MAX_TRACKS = 100
"""Entries of a video and category that count, those of the highest scores: the servers' rule."""


class Submission(NamedTuple):
    """One line of results to be: track (position in the list), label, mean score."""

    track: int
    label: int
    score: float


def submissions(tracks: Sequence[Track], config: TrackerConfig) -> list[Submission]:
    """Which classes every track is submitted under, and in which order.

    With config.multi_class: each class whose mean score exceeds class_score_threshold (released:
    APPLY_CLS_THRES); otherwise the best class, whatever its score. Order: tracks as given, then
    labels ascending; among equal scores the evaluator prefers the earlier.
    """
    chosen = []
    for position, track in enumerate(tracks):
        if config.multi_class:
            labels = (track.class_scores > config.class_score_threshold).nonzero().flatten()
        else:
            labels = track.class_scores.argmax().reshape(1)
        chosen += [
            Submission(position, label, float(track.class_scores[label]))
            for label in labels.tolist()
        ]
    return chosen


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
    returns:      entries in the order of `submissions`. A frame without the track is None (the
                  released code writes an all-zero mask; both score the same)
    Errors: ValueError where tracks, frames, length and classes do not fit together.
    """
    by_index = {frame.frame_index: frame for frame in frames}
    segmentations: list[list[dict[str, Any] | None]] = []
    for track in tracks:
        if len(track.class_scores) != len(category_ids):
            raise ValueError(
                f"track {track.track_id} of video {video_id} has {len(track.class_scores)} class "
                f"scores, but there are {len(category_ids)} category_ids"
            )
        masks: list[dict[str, Any] | None] = [None] * length
        for frame_index, row in track.detections.items():
            if not 0 <= frame_index < length:
                raise ValueError(
                    f"track {track.track_id} of video {video_id} is on frame {frame_index}, but "
                    f"that video has {length} frames"
                )
            frame = by_index.get(frame_index)
            if frame is None or not 0 <= row < len(frame.masks):
                held = "is not given" if frame is None else f"carries {len(frame.masks)} masks"
                raise ValueError(
                    f"track {track.track_id} of video {video_id} needs the mask of detection {row} "
                    f"on frame {frame_index}, but that frame {held}"
                )
            masks[frame_index] = {"size": list(size), "counts": frame.masks[row].decode("ascii")}
        segmentations.append(masks)
    return [
        {
            "video_id": int(video_id),
            "category_id": int(category_ids[label]),
            "score": score,
            "segmentations": segmentations[track],
        }
        for track, label, score in submissions(tracks, config)
    ]


def write(path: str | Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write a results file: the same entries give the same bytes, and no half file is ever seen.

    Entries are sorted by video, category and descending score. Equal scores keep their order, as
    it decides ties when scoring; entries of one video must therefore come in a fixed order.
    Errors: ValueError for a score that is not finite, or a mask that is no compressed RLE.
    """
    path = Path(path)
    plain = [_plain(entry, index) for index, entry in enumerate(entries)]
    plain.sort(key=lambda e: (e["video_id"], e["category_id"], -e["score"]))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            # One entry per line: as valid as any JSON, and lines of two runs can be compared.
            file.write("[")
            for index, entry in enumerate(plain):
                file.write(",\n" if index else "\n")
                file.write(json.dumps(entry, sort_keys=True, separators=(",", ":")))
            file.write("\n]\n")
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a result is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _plain(entry: Mapping[str, Any], index: int) -> Entry:
    """The four fields of an entry, as plain JSON types."""
    _check_fields(entry, index, compat=False)
    masks: list[dict[str, Any] | None] = []
    for frame, mask in enumerate(entry["segmentations"]):
        readable = _mask(mask, f"results[{index}].segmentations[{frame}]")
        masks.append(
            None
            if readable is None
            else {"size": readable["size"], "counts": readable["counts"].decode("ascii")}
        )
    return {
        "video_id": int(entry["video_id"]),
        "category_id": int(entry["category_id"]),
        "score": float(entry["score"]),
        "segmentations": masks,
    }


def read(source: str | Path | list[Any]) -> list[Entry]:
    """Load a results file, or take the parsed list; `check_video` looks at the entries.

    Errors: FileNotFoundError; ValueError if it is not JSON or not a list.
    """
    entries = load_json(Path(source), "results") if isinstance(source, str | Path) else source
    if not isinstance(entries, list):
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
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ValueError(f"results[{index}].{key} must be a whole number, got {value!r}")
    score = entry.get("score")
    if not isinstance(score, Real) or isinstance(score, bool):
        raise ValueError(f"results[{index}].score must be a number, got {score!r}")
    if not math.isfinite(score) and not compat:
        raise ValueError(f"results[{index}].score must be finite, got {score}")
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


def check_video(
    entries: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    truth: VideoTruth,
    *,
    compat: bool = False,
) -> tuple[list[list[Rle | None]], NDArray[np.int64]]:
    """Check one video's N entries against the video; return their masks and areas.

    entries: with fields checked (`check_ids`)
    indices: (N,) positions in the results file, for messages
    compat:  accept lists that are too short or too long, and masks of another size
    returns: N lists of T masks or None; (N, T) their areas in pixels, 0 where absent. In compat
             mode a list is as long as the entry's, and areas has room for the longest
    Errors: ValueError with the entry's index and frame.
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
                # As nearly all are, and there are hundreds of thousands.
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
    areas, wrong = rle.check_tracks(masks, max([truth.length, *map(len, masks)]))
    if wrong is not None:
        n, frame = wrong
        raise ValueError(
            f"results[{indices[n]}].segmentations[{frame}] is no readable RLE: its runs do not "
            f"add up to the pixels of its size {masks[n][frame]['size']}"  # type: ignore[index]
        )
    return masks, areas
