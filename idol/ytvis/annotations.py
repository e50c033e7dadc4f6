"""Annotation JSON for every job: YouTube-VIS, OVIS, CocoVID, and COCO of tracks or still images.

A still image is a video of one frame.

What is harmless is repaired and counted; what is not rejects its video, with the reason. Only a
file that is no annotation file at all is an error.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from idol import files
from idol.masks import rle
from idol.spool import Keyed, Spool
from idol.ytvis import image_layouts, lazy_rows, repairs
from idol.ytvis.repairs import Repairs
from idol.ytvis.videos import Annotations, Instance, Reject, Rle, Video, checked_areas, stated_box

EXPECTED = (
    "Expected YouTube-VIS JSON: {videos: [{id, width, height, file_names}], categories: "
    "[{id, name}], annotations: [{id, video_id, category_id, segmentations}]}, CocoVID's or COCO's."
)

_MAX_SIDE = 1 << 15  # pixels; the runs of a larger mask overflow in pycocotools

_MAX_LENGTH = 1 << 22  # frames; 38 hours at 30 a second

_log = logging.getLogger(__name__)


class InvalidAnnotations(ValueError):
    """A file is no annotation file: InvalidAnnotations(origin, reason)."""

    def __init__(self, origin: str, reason: str) -> None:
        super().__init__(origin, reason)
        self.origin, self.reason = origin, reason

    def __str__(self) -> str:
        return f"{self.origin} {self.reason} {EXPECTED}"


class InvalidJson(ValueError):
    """A file is no JSON."""


def read(source: Mapping[str, Any] | str | Path, *, compat: bool = False) -> Annotations:
    """Read a file, or parsed JSON; see `parse`.

    Raises:
        FileNotFoundError, IsADirectoryError: the path names no file.
        ValueError: it is no JSON, or as of `parse`.
    """
    if not isinstance(source, str | Path):
        return parse(source, "truth", compat=compat)
    path = Path(source)
    files.check_file(path, "truth")
    try:
        return read_file(path, str(source), compat=compat)
    except InvalidJson as error:
        raise ValueError(f"the truth file {path} is not valid JSON: {error}") from error


def read_file(path: Path, origin: str, *, compat: bool = False) -> Annotations:
    """As `parse` of the JSON in a file; one of YouTube-VIS is never in memory as a whole.

    origin: what messages call the file
    Raises: OSError: it cannot be read; InvalidJson: it is no JSON; ValueError: as of `parse`.
    """
    try:
        return parse(lazy_rows.load(path), origin, compat=compat)
    except (lazy_rows.UnusualLayout, InvalidJson) as reason:
        _log.debug("%s is read as a whole: %s", origin, reason)
    try:
        content = files.parse_json(path.read_bytes())
    except ValueError as error:
        raise InvalidJson(str(error)) from error
    return parse(content, origin, compat=compat)


def parse(content: Any, origin: str, *, compat: bool = False) -> Annotations:
    """Check, repair and type parsed JSON; what was repaired is logged in one warning.

    compat: take what the official evaluator takes as it takes it: ids as they are, of a repeated
            one the last annotation; masks of another size or number than the video's. It leaves
            out annotations of unknown videos and categories. Repairs are not made
    Raises:
        InvalidAnnotations: it is no annotation file.
        InvalidJson: one of its `lazy_rows.Row`s is no JSON.
        ValueError: in compat mode, where a video cannot be read.
    """
    try:
        found = _Reader(content, origin, compat).read()
    except lazy_rows.NotJson as error:
        raise InvalidJson(f"{origin} is not valid JSON: {error}") from error
    if compat and found.rejects:
        first = found.rejects[0]
        raise ValueError(f"{origin}: video {first.video_id}: {first.reason}")
    if found.repairs and not compat:
        _log.warning("%s was repaired while reading: %s", origin, found.repairs)
    return found


class _Row(NamedTuple):
    """An annotation of the file; `name` is what messages call it."""

    name: str
    instance_id: int
    json: Mapping[str, Any]


class _Reader:
    """Reads one file; its methods raise ValueError for what rejects a video."""

    def __init__(self, content: Any, origin: str, compat: bool) -> None:
        self.origin, self.compat = origin, compat
        if not isinstance(content, Mapping):
            hint = " (results go in the other argument)" if isinstance(content, list) else ""
            raise self.refuse(f"the top level is a {type(content).__name__}{hint}")
        self.repairs = Repairs()
        self.content, self.faults = image_layouts.by_video(content, self.repairs)
        self.images = "videos" not in self.content and "images" in self.content
        self.names: dict[int, str] = {}  # of categories

    def refuse(self, reason: str) -> InvalidAnnotations:
        """The error for a file that is no annotation file."""
        return InvalidAnnotations(self.origin, f"is not YouTube-VIS: {reason}.")

    def read(self) -> Annotations:
        """All of the file."""
        videos, repeated = self.videos()
        self.names = self.categories()
        listed = None
        if self.content.get("annotations") is not None:
            listed = self.objects("annotations")
        rows_of = self.grouped(listed or (), videos)
        count = None if listed is None else len(listed)
        del listed
        usable: list[int] = []
        rejects = []

        def found() -> Iterator[Video]:
            for video_id in sorted(videos):
                try:
                    if video_id in self.faults:
                        raise ValueError(self.faults[video_id])
                    if video_id in repeated:
                        raise ValueError("two videos have this id")
                    video = self.video(video_id, videos[video_id], rows_of[video_id])
                except ValueError as error:
                    rejects.append(Reject(video_id, self.origin, str(error)))
                else:
                    usable.append(video_id)
                    yield video

        spool = Spool(found())
        kept = Keyed(usable, spool)
        return Annotations(self.origin, self.names, kept, tuple(rejects), self.repairs, count)

    def objects(self, key: str) -> list[tuple[str, Mapping[str, Any]]]:
        """A list of JSON objects, each after what messages call it."""
        rows = self.content.get(key)
        if not isinstance(rows, list):
            raise self.refuse(f"it has no list {key!r}")
        named = [(f"{key}[{index}]", row) for index, row in enumerate(rows)]
        for where, row in named:
            if not isinstance(row, Mapping):
                raise self.refuse(f"{where} is not an object")
        return named

    def number(self, row: Mapping[str, Any], key: str, where: str) -> int:
        """A whole number without which the file makes no sense."""
        value = self.repairs.whole(row.get(key), where)
        if value is None:
            raise self.refuse(f"{where} has {key} {row.get(key)!r}, not a whole number")
        return value

    def videos(self) -> tuple[dict[int, Mapping[str, Any]], set[int]]:
        """video_id -> the video's JSON, and the ids that different videos have."""
        rows: dict[int, Mapping[str, Any]] = {}
        repeated: set[int] = set()
        for where, row in self.objects("images" if self.images else "videos"):
            video_id = self.number(row, "id", where)
            if video_id not in rows:
                rows[video_id] = row
            elif rows[video_id] == row:
                self.repairs.add(repairs.TWICE, where)
            else:
                repeated.add(video_id)
        if not rows:
            raise self.refuse("it has no videos")
        return rows, repeated

    def categories(self) -> dict[int, str]:
        """category_id -> name."""
        stated: dict[int, Any] = {}
        if "categories" not in self.content and self.content.get("annotations") is None:
            return {}  # videos that nobody labelled
        for where, row in self.objects("categories"):
            category_id = self.number(row, "id", where)
            if category_id in stated and not self.compat:
                raise self.refuse(f"it has the id {category_id} twice in 'categories'")
            stated[category_id] = row.get("name")
        if not stated:
            raise self.refuse("it has no categories")
        names: dict[int, str] = {}
        taken = {name for name in stated.values() if isinstance(name, str)}
        for category_id, name in sorted(stated.items()):
            where = f"category {category_id}"
            if not isinstance(name, str) or not name:
                self.repairs.add(repairs.NAMELESS, where)
                name = str(category_id)
            name = base = self.repairs.text(name, where)
            if name in names.values():
                self.repairs.add(repairs.SAME_NAME, where)
                numbered = (f"{base} ({n})" for n in itertools.count(2))
                name = next(n for n in numbered if n not in taken)
                taken.add(name)
            names[category_id] = name
        return names

    def grouped(
        self, listed: Iterable[tuple[str, Mapping[str, Any]]], videos: Iterable[int]
    ) -> dict[int, list[_Row]]:
        """video_id -> its annotations in the file's order, numbered; every video has an entry."""
        grouped: dict[int, list[_Row]] = {video_id: [] for video_id in videos}
        rows = []
        for name, row in listed:
            video_id = self.number(row, "image_id" if self.images else "video_id", name)
            own = self.repairs.whole(row.get("id"), name)
            if own is None and self.compat:
                raise self.refuse(f"{name} has id {row.get('id')!r}, not a whole number")
            rows.append((name, row, video_id, own or 0))
        if self.compat:
            # The official code looks annotations up by id: of a repeated id the last counts.
            last = {number: row for _, row, _, number in rows}
            for name, _, video_id, number in rows:
                row = last[number]
                category_id = self.repairs.whole(row.get("category_id"), name)
                if video_id in grouped and category_id in self.names:
                    grouped[video_id].append(_Row(name, number, row))
            return grouped
        seen = {0}
        free = itertools.count(max((number for *_, number in rows), default=0) + 1)
        for name, row, video_id, number in rows:
            if number not in seen:
                name = f"annotation {number}"
            else:
                self.repairs.add(repairs.IDS, name)
                number = next(free)
            seen.add(number)
            if video_id in grouped:
                grouped[video_id].append(_Row(name, number, row))
            else:
                self.repairs.add(repairs.ORPHANS, f"{name} of video {video_id}")
        return grouped

    def video(self, video_id: int, row: Mapping[str, Any], rows: Sequence[_Row]) -> Video:
        """One video."""
        where, row = f"video {video_id}", lazy_rows.whole(row)
        size = self.size(row, where)
        names = self.file_names(row, where)
        length = self.length(row, names, where)
        found = [self.instance(r, size, length) for r in rows]
        columns = max([length, *(len(i.masks) for i in found)])
        areas = checked_areas([i.masks for i in found], columns, [r.name for r in rows])
        seen = np.logical_or(areas.any(axis=1), self.compat)
        for unseen in itertools.compress(rows, (~seen).tolist()):
            self.repairs.add(repairs.UNSEEN, unseen.name)
        title = row.get("name")
        title = self.repairs.text(title, where) if isinstance(title, str) else ""
        instances = tuple(itertools.compress(found, seen.tolist()))
        return Video(video_id, size, length, names, title, instances, areas[seen])

    def size(self, row: Mapping[str, Any], where: str) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = (self.repairs.whole(row.get(n), where) or 0 for n in ("height", "width"))
        for side, value in (("height", height), ("width", width)):
            if not 0 < value <= _MAX_SIDE:
                raise ValueError(
                    f"{side} must be a whole number of pixels in 1..{_MAX_SIDE}, "
                    f"got {row.get(side)!r}"
                )
        return height, width

    def file_names(self, row: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
        """Relative paths of the frames; None where the file names none."""
        names = row.get("file_names")
        if self.images:
            names = None if row.get("file_name") is None else [row["file_name"]]
        if names is None or self.compat:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("file_names must be a list of paths")
        clean = [self.repairs.text(name, where) for name in names]
        if count := sum("\\" in name for name in clean):
            self.repairs.add(repairs.BACKSLASHES, where, count)
            clean = [name.replace("\\", "/") for name in clean]
        return tuple(clean)

    def length(self, row: Mapping[str, Any], names: Sequence[str] | None, where: str) -> int:
        """T, which `length` and the list of frames must agree on where there are both."""
        stated = 1 if self.images else row.get("length")
        if self.compat and stated is None and isinstance(row.get("file_names"), list):
            stated = len(row["file_names"])
        if names is not None and not names:
            raise ValueError("it has no frames (file_names is empty)")
        length = self.repairs.whole(len(names) if stated is None and names else stated, where)
        if names is not None and length != len(names):
            raise ValueError(f"length says {stated!r}, but file_names has {len(names)} entries")
        if length is None or not 1 <= length <= _MAX_LENGTH:
            raise ValueError(
                f"length must be a whole number of frames from 1 to {_MAX_LENGTH}, got {stated!r}"
            )
        return length

    def instance(self, row: _Row, size: tuple[int, int], length: int) -> Instance:
        """One annotation."""
        name, number, json = row.name, row.instance_id, lazy_rows.whole(row.json)
        category_id = self.repairs.whole(json.get("category_id"), name)
        if category_id not in self.names:
            raise ValueError(
                f"{name} has category_id {json.get('category_id')!r}, which is not among the "
                "categories"
            )
        if self.images and not self.compat and image_layouts.box_alone(json):
            raise ValueError(f"{name} has a box and no mask")
        segmentations = [json.get("segmentation")] if self.images else json.get("segmentations")
        if not isinstance(segmentations, list):
            raise ValueError(f"{name} has no list 'segmentations'")
        if len(segmentations) != length and not self.compat:
            raise ValueError(f"{name} has {len(segmentations)} segmentations for {length} frames")
        crowd, words = json.get("iscrowd", 0), json.get("occlusion")
        return Instance(
            instance_id=number,
            category_id=category_id,
            crowd=bool(crowd) if self.compat else self.repairs.crowd(crowd, name),
            masks=self.masks(segmentations, size, name),
            stated_areas=self.stated_areas(json, length, name),
            occlusion=tuple(words) if isinstance(words, list) else (),
            boxes=(stated_box(json.get("bbox")),) if self.images else (),
        )

    def masks(
        self, segmentations: list[Any], size: tuple[int, int], name: str
    ) -> tuple[Rle | None, ...]:
        """Per frame a compressed RLE, not yet looked into, or None."""
        shape = list(size)
        masks: list[Rle | None] = []
        for frame, segmentation in enumerate(segmentations):
            if (
                segmentation.__class__ is dict
                and segmentation.get("size") == shape
                and segmentation.get("counts").__class__ is str
                and segmentation["counts"].isascii()
            ):  # as nearly all are, and there are hundreds of thousands
                masks.append({"size": shape, "counts": segmentation["counts"].encode("ascii")})
                continue
            where = f"{name}, frame {frame}"
            try:
                if isinstance(segmentation, list) and not self.compat:
                    segmentation = self.repairs.polygons(segmentation, size, where)
                mask = rle.compress(segmentation, size)
                if mask is not None and mask["size"] != shape and not self.compat:
                    raise ValueError(
                        f"the mask has size {mask['size']}, the video {shape} (height, width)"
                    )
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            masks.append(mask)
        return tuple(masks)

    def stated_areas(
        self, json: Mapping[str, Any], length: int, name: str
    ) -> NDArray[np.float64] | None:
        """The file's areas, which the official evaluator trusts over the masks; None: measure."""
        key = "area" if self.images else "areas"
        if key not in json or (json[key] is None and self.compat):
            return None
        stated = [json[key]] if self.images else json[key]
        if not self.compat:
            return self.repairs.areas(stated, length, name)
        values = repairs.as_areas(stated)
        if values is None:
            raise ValueError(f"{name}.areas must hold a number or null per frame")
        return values
