"""The truth of a video data set as scoring needs it: YouTube-VIS or OVIS JSON, read and checked."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from idol.masks import rle

Rle: TypeAlias = dict[str, Any]
"""{"size": [height, width], "counts": compressed bytes}, as pycocotools takes it."""

OCCLUSION_SCORES = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}
"""OVIS's score of each per-frame word."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoTruth:
    """The G true instances of one video of T frames, in the file's order. Picklable.

    video_id:      the data set's id
    size:          (height, width) in pixels
    length:        T
    categories:    category_id of every class of the data set, ascending
    instance_ids:  (G,)   annotation ids
    category_ids:  (G,)
    crowd:         (G,)   bool, iscrowd
    average_areas: (G,)   mean of the file's `areas` over frames with any, as the official
                   evaluator has it; of the masks where the file states none
    occlusion:     (G,)   OVIS occlusion score in [0, 1], or None where the data set has none
    areas:         (G, T) pixels of every mask, 0 where absent
    masks:         G tuples of T masks, None where absent; () after without_masks. In compat mode
                   a tuple has as many masks as the file, and areas as many columns as the longest
    """

    video_id: int
    size: tuple[int, int]
    length: int
    categories: tuple[int, ...]
    instance_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    average_areas: NDArray[np.float64]
    occlusion: NDArray[np.float64] | None
    areas: NDArray[np.int64]
    masks: tuple[tuple[Rle | None, ...], ...]

    def __len__(self) -> int:
        return len(self.instance_ids)

    def without_masks(self) -> VideoTruth:
        """The same for scoring from stored overlaps: small enough to send with every task."""
        return dataclasses.replace(self, masks=())


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """A data set's truth.

    categories: category_id -> name, ascending by id
    videos:     video_id -> VideoTruth, ascending by id
    """

    categories: dict[int, str]
    videos: dict[int, VideoTruth]


def average_area(areas: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over the frames in which there is any area, 0 where there never is.

    areas:   (N, T) pixels per frame
    returns: (N,)
    """
    seen = (areas > 0).sum(axis=1)
    mean: NDArray[np.float64] = areas.sum(axis=1) / np.maximum(seen, 1)
    return mean


def read(source: Truth | Mapping[str, Any] | str | Path, *, compat: bool = False) -> Truth:
    """Read YouTube-VIS or OVIS annotations.

    source:  path of the JSON, the parsed JSON, or a Truth (returned as it is)
    compat:  accept what the official evaluator accepts: annotation id 0 (never counted as matched
             there), repeated ids, categories that the file does not list (dropped), masks of
             another size or number than the video's
    Errors: ValueError naming the file's entry by its index, the rule and what came.
    """
    if isinstance(source, Truth):
        return source
    if isinstance(source, str | Path):
        data = load_json(Path(source), "truth")
        origin = str(source)
    else:
        data, origin = source, "truth"
    if not isinstance(data, Mapping) or not {"videos", "categories"} <= data.keys():
        got = sorted(data) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(
            f"{origin} is not YouTube-VIS truth: a JSON object with 'videos', 'categories' and "
            f"'annotations', got {got}. (Results go in the other argument.)"
        )
    annotations = data.get("annotations")
    # A part of a data set may have none; a whole file without any is one whose truth is kept.
    if annotations is None or (annotations == [] and isinstance(source, str | Path)):
        if not compat:
            raise ValueError(
                f"{origin} has no annotations: the truth of this split is not public. Submit the "
                "results to the benchmark's server, or score on a split that has truth."
            )
        annotations = []

    names = {
        _integer(c, "id", f"categories[{i}]"): str(c.get("name", c["id"]))
        for i, c in enumerate(_objects(data["categories"], "categories"))
    }
    categories = dict(sorted(names.items()))
    shapes = _shapes(_objects(data["videos"], "videos"))
    grouped = _group(_objects(annotations, "annotations"), shapes, categories, compat)
    occlusion = _has_occlusion(annotations, compat)
    videos = {
        video_id: _video(video_id, *shapes[video_id], categories, rows, occlusion, compat)
        for video_id, rows in grouped.items()
    }
    return Truth(categories, videos)


def from_masks(
    video_id: int,
    size: tuple[int, int],
    length: int,
    categories: Iterable[int],
    *,
    instance_ids: Sequence[int],
    category_ids: Sequence[int],
    crowd: Sequence[bool],
    segmentations: Sequence[Sequence[bytes | None]],
) -> VideoTruth:
    """Truth of one video from masks at hand: selected frames, merged data sets, generated videos.

    categories:    category_id of every class of the data set
    instance_ids:  (G,);  category_ids: (G,);  crowd: (G,)
    segmentations: G lists of T compressed RLE counts of this size, or None
    returns:       VideoTruth; average areas are those of the masks, and there is no occlusion
    """
    rows: list[tuple[int, Mapping[str, Any]]] = [
        (
            g,
            {
                "id": instance_id,
                "category_id": category_id,
                "iscrowd": is_crowd,
                "segmentations": [
                    None if counts is None else {"size": list(size), "counts": counts}
                    for counts in masks
                ],
            },
        )
        for g, (instance_id, category_id, is_crowd, masks) in enumerate(
            zip(instance_ids, category_ids, crowd, segmentations, strict=True)
        )
    ]
    names = {int(c): "" for c in sorted(categories)}
    return _video(video_id, size, length, names, rows, occlusion=False, compat=False)


def check_file(path: Path, what: str) -> None:
    """Raise FileNotFoundError, or IsADirectoryError, unless this is a file."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the {what} file in it")
    if not path.is_file():
        raise FileNotFoundError(f"the {what} file {path} does not exist")


def load_json(path: Path, what: str) -> Any:
    """Parse a JSON file. ValueError says which file was cut short or is no JSON."""
    check_file(path, what)
    collecting = gc.isenabled()
    # Parsing makes objects by the million and no circle among them: looking for some takes longer.
    gc.disable()
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the {what} file {path} is not valid JSON: {error}") from error
    finally:
        if collecting:
            gc.enable()


def _objects(rows: Any, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(rows, list):
        raise ValueError(f"truth['{name}'] must be a list, got {type(rows).__name__}")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"{name}[{index}] must be an object, got {str(row)[:60]!r}")
    return rows


def _integer(row: Mapping[str, Any], key: str, where: str) -> int:
    value = row.get(key)
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{where}.{key} must be a whole number, got {value!r}")
    return int(value)


def _shapes(rows: Iterable[Mapping[str, Any]]) -> dict[int, tuple[tuple[int, int], int]]:
    """video_id -> ((height, width), length), ascending by id."""
    shapes: dict[int, tuple[tuple[int, int], int]] = {}
    for index, row in enumerate(rows):
        where = f"videos[{index}]"
        video_id = _integer(row, "id", where)
        if video_id in shapes:
            raise ValueError(f"{where} repeats the id {video_id} of an earlier video")
        if "length" not in row and isinstance(row.get("file_names"), list):
            length = len(row["file_names"])
        else:
            length = _integer(row, "length", where)
        size = (_integer(row, "height", where), _integer(row, "width", where))
        if min(*size, length) < 1:
            raise ValueError(
                f"{where} has height, width, length {(*size, length)}; all must be > 0"
            )
        shapes[video_id] = (size, length)
    return dict(sorted(shapes.items()))


def _group(
    annotations: list[Mapping[str, Any]],
    shapes: Mapping[int, Any],
    categories: Mapping[int, str],
    compat: bool,
) -> dict[int, list[tuple[int, Mapping[str, Any]]]]:
    """video_id -> [(index in the file, annotation)] in file order; every video has an entry."""
    by_id: dict[int, tuple[int, Mapping[str, Any]]] = {}
    order: list[tuple[int, int]] = []
    for index, row in enumerate(annotations):
        where = f"annotations[{index}]"
        instance_id = _integer(row, "id", where)
        video_id = _integer(row, "video_id", where)
        category_id = _integer(row, "category_id", where)
        if not compat:
            if instance_id == 0:
                raise ValueError(
                    f"{where} has id 0, which the official evaluator can never count as found. "
                    "Number annotations from 1, or pass compat=True to score as it does."
                )
            if instance_id in by_id:
                raise ValueError(
                    f"{where} repeats the id {instance_id} of annotations[{by_id[instance_id][0]}]"
                )
            if video_id not in shapes:
                raise ValueError(f"{where} belongs to video {video_id}, which is not in 'videos'")
            if category_id not in categories:
                raise ValueError(
                    f"{where} has category_id {category_id}, which is not in 'categories'"
                )
        by_id[instance_id] = (index, row)
        order.append((video_id, instance_id))
    grouped: dict[int, list[tuple[int, Mapping[str, Any]]]] = {v: [] for v in shapes}
    for video_id, instance_id in order:
        # The official code looks annotations up by id: of a repeated id the last one counts.
        index, row = by_id[instance_id]
        if video_id in grouped and row["category_id"] in categories:
            grouped[video_id].append((index, row))
    return grouped


def _has_occlusion(annotations: list[Mapping[str, Any]], compat: bool) -> bool:
    """Whether this is OVIS-like truth: every annotation says how occluded it is."""
    have = [
        isinstance(words := row.get("occlusion"), list) and (not compat or any(words))
        for row in annotations
    ]
    if any(have) and not all(have) and not compat:
        raise ValueError(
            f"annotations[{have.index(False)}] has no 'occlusion' list, but others do. Occlusion "
            "levels can be scored only where every annotation has one; remove or complete them."
        )
    return bool(have) and all(have)


def _occlusion(row: Mapping[str, Any], where: str) -> float:
    """OVIS score of one instance: the mean of the upper half of its frames."""
    words = [word for word in row["occlusion"] if word is not None]
    unknown = [word for word in words if word not in OCCLUSION_SCORES]
    if unknown or not words:
        raise ValueError(
            f"{where}.occlusion must be null or one of {', '.join(OCCLUSION_SCORES)} per frame, "
            f"at least once not null; got {unknown[0]!r}"
            if unknown
            else f"{where}.occlusion is null in every frame, so the instance has no occlusion score"
        )
    scores = sorted((OCCLUSION_SCORES[word] for word in words), reverse=True)
    upper = scores[: (len(scores) + 1) // 2]
    return sum(upper) / len(upper)


def _video(
    video_id: int,
    size: tuple[int, int],
    length: int,
    categories: Mapping[int, str],
    rows: list[tuple[int, Mapping[str, Any]]],
    occlusion: bool,
    compat: bool,
) -> VideoTruth:
    masks: list[tuple[Rle | None, ...]] = []
    shape = list(size)
    for index, row in rows:
        where = f"annotations[{index}]"
        segmentations = row.get("segmentations")
        if not isinstance(segmentations, list):
            raise ValueError(f"{where}.segmentations must be a list with one entry per frame")
        if len(segmentations) != length and not compat:
            raise ValueError(
                f"{where}.segmentations has {len(segmentations)} entries, but video {video_id} has "
                f"{length} frames"
            )
        track: list[Rle | None] = []
        for frame, segmentation in enumerate(segmentations):
            if segmentation is None:
                track.append(None)
                continue
            if (
                segmentation.__class__ is dict
                and segmentation.get("size") == shape
                and segmentation.get("counts").__class__ is str
                and segmentation["counts"].isascii()
            ):  # as nearly all are
                track.append({"size": shape, "counts": segmentation["counts"].encode("ascii")})
                continue
            try:
                mask = rle.compress(segmentation, size)
            except ValueError as error:
                raise ValueError(f"{where}.segmentations[{frame}]: {error}") from error
            if mask is not None and tuple(mask["size"]) != size and not compat:
                raise ValueError(
                    f"{where}.segmentations[{frame}] has size {list(mask['size'])}, but video "
                    f"{video_id} is {list(size)} (height, width)"
                )
            track.append(mask)
        masks.append(tuple(track))
    areas, wrong = rle.check_tracks(masks, max([length, *map(len, masks)]))
    if wrong is not None:
        g, frame = wrong
        raise ValueError(
            f"annotations[{rows[g][0]}].segmentations[{frame}] is no readable RLE of its size"
        )
    return VideoTruth(
        video_id=video_id,
        size=size,
        length=length,
        categories=tuple(categories),
        instance_ids=np.array([row["id"] for _, row in rows], np.int64),
        category_ids=np.array([row["category_id"] for _, row in rows], np.int64),
        crowd=np.array([bool(row.get("iscrowd", 0)) for _, row in rows], bool),
        average_areas=_stated_areas(rows, areas),
        occlusion=np.array([_occlusion(row, f"annotations[{i}]") for i, row in rows], np.float64)
        if occlusion
        else None,
        areas=areas,
        masks=tuple(masks),
    )


def _stated_areas(
    rows: list[tuple[int, Mapping[str, Any]]], measured: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(G,) average area from the file's `areas`, which the official code trusts over the masks."""
    averages = average_area(measured)
    for g, (index, row) in enumerate(rows):
        stated = row.get("areas")
        if stated is None:
            continue
        try:
            values = np.array([[0.0 if a is None else float(a) for a in stated]])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"annotations[{index}].areas must hold a number or null per frame: {error}"
            ) from error
        # Summed as the official code does: entries that are null or 0 do not count.
        kept = values[values != 0]
        averages[g] = kept.mean() if len(kept) else 0.0
    return averages
