"""JSON files of any size: the rows of a list are found once, and each is parsed when it is read.

A window of the file is cut at its last border between two rows, as they look in annotations and
results. A list of complete JSON objects with commas between them can be cut in one way only, so
what parses between two borders are rows; and what does not is left to reading the file as a whole.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from idol import files
from idol.spool import Mapped

_WINDOW = 1 << 18  # bytes
_ALONE = 16  # rows of a list that are found one by one, which takes a window each
_LISTS = ("videos", "images", "annotations")
_SPACE = b" \t\r\n"
# The next object does not begin like a mask.
_BORDER = re.compile(rb'\}\s*,\s*\{(?=\s*"(?!size"|counts"))')
_value = json.JSONDecoder().raw_decode


class UnusualLayout(ValueError):
    """The file is written in a way that only reading it as a whole can judge."""


class NotJson(Exception):
    """A row is no JSON; no ValueError, which would be a fault of its video alone."""


class Ids(msgspec.Struct, gc=False):
    """What decides which rows belong to which video."""

    id: Any = msgspec.UNSET
    video_id: Any = msgspec.UNSET
    image_id: Any = msgspec.UNSET
    category_id: Any = msgspec.UNSET


class _Layout(msgspec.Struct, gc=False):
    """What decides whether images are frames of videos."""

    video_id: Any = msgspec.UNSET
    instance_id: Any = None
    track_id: Any = None
    attributes: Any = None
    segmentations: msgspec.Raw = msgspec.Raw()


_ids = msgspec.json.Decoder(Ids).decode
_layout = msgspec.json.Decoder(_Layout).decode
_any = msgspec.json.Decoder().decode


class Row(Mapping[str, Any]):
    """A JSON object that lies elsewhere: its ids are at hand, all else is fetched at each use."""

    __slots__ = ("_fetch", "_ids", "_key")

    def __init__(self, ids: Ids, fetch: Callable[[Any], dict[str, Any]], key: Any) -> None:
        """fetch: makes the whole object of the key"""
        self._ids, self._fetch, self._key = ids, fetch, key

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        if key not in Ids.__struct_fields__:
            return self.whole().get(key, default)
        value = getattr(self._ids, key)
        return default if value is msgspec.UNSET else value

    def whole(self) -> dict[str, Any]:
        """All of it. Raises: NotJson."""
        return self._fetch(self._key)

    def __getitem__(self, key: str) -> Any:
        return self.whole()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole())

    def __len__(self) -> int:
        return len(self.whole())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self.whole() == whole(other)

    __hash__ = None  # type: ignore[assignment]


def whole(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row parsed, once for all that is looked up in it."""
    return row.whole() if isinstance(row, Row) else row


class _File:
    """An open file, closed with the last that reads from it."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, size: int, start: int) -> bytes:
        """The bytes at a place; fewer at the end."""
        return os.pread(self._handle, size, start)


class Listed:
    """The objects of a list in a file.

    starts, stops: first byte of each, and the byte after it
    ids:           of each; None: they are not wanted
    """

    def __init__(self, file: _File, *, ids: bool = True) -> None:
        self.starts, self.stops = array("q"), array("q")
        self.ids: list[Ids] | None = [] if ids else None
        self._file = file

    def __len__(self) -> int:
        return len(self.starts)

    def text(self, index: int) -> bytes:
        """The JSON of one of them."""
        start = self.starts[index]
        return self._file.read(self.stops[index] - start, start)

    def item(self, index: int) -> Any:
        """One of them, parsed. Raises: NotJson."""
        text = self.text(index)
        try:
            return _any(text)  # as parse_json, whose care for large files takes longer than a row
        except (ValueError, RecursionError):
            try:
                return files.parse_json(text)
            except ValueError as error:
                raise NotJson(str(error)) from error

    def layouts(self) -> Iterator[_Layout]:
        """Of each of them."""
        return (_layout(self.text(n)) for n in range(len(self)))

    def rows(self) -> list[Row]:
        """All of them; a Row takes some 200 bytes."""
        return [Row(ids, self.item, n) for n, ids in enumerate(self.ids or ())]

    def items(self) -> Mapped[int, Any]:
        """All of them, each parsed whenever it is asked for."""
        return Mapped(self.item, range(len(self)))

    def add(self, start: int, data: bytes, found: Sequence[msgspec.Raw]) -> None:
        """Add objects that follow each other in data, which begins at start."""
        place = 0
        for raw in found:
            while data[place] in b", \t\r\n":
                place += 1
            self.starts.append(start + place)
            place += len(memoryview(raw))
            self.stops.append(start + place)
            ids = _ids(raw)
            if self.ids is not None:
                self.ids.append(ids)


class _Scan:
    """Walks through a file once; its methods raise ValueError where it is not as expected."""

    def __init__(self, path: Path) -> None:
        self.file = _File(path)
        self.place = 0

    def read(self, size: int) -> bytes:
        """Bytes from here on."""
        return self.file.read(size, self.place)

    def next(self, wanted: bytes, *, take: bool = True) -> bytes:
        """The next character, which is one of those wanted; of none, the end of the file."""
        while data := self.read(256):
            inside = data.lstrip(_SPACE)
            self.place += len(data) - len(inside)
            if inside:
                break
        found = data and inside[:1]
        if found not in wanted or bool(found) != bool(wanted):
            raise UnusualLayout(f"{found!r} at byte {self.place} is none of {wanted!r}")
        self.place += take
        return found

    def value(self) -> Any:
        """Any value, read into memory."""
        size = _WINDOW
        while True:
            data = self.read(size)
            text, _ = codecs.utf_8_decode(data, "surrogatepass", len(data) < size)
            try:
                value, stop = _value(text)
            except (ValueError, RecursionError):
                stop = len(text)
            if stop < len(text):  # at the end of the window more may follow
                self.place += len(text[:stop].encode("utf-8", "surrogatepass"))
                return value
            if len(data) < size:
                raise UnusualLayout(f"what begins at byte {self.place} is no JSON")
            size *= 4

    def objects(self, *, ids: bool = True) -> Listed:
        """A list of objects."""
        found = Listed(self.file, ids=ids)
        self.next(b"[")
        if self.next(b"{]", take=False) == b"]":
            self.next(b"]")
            return found
        alone = 0
        while True:
            start = self.place
            size = self._several(found)
            if not size:  # the last one, as a rule
                alone += 1
                if alone > _ALONE:
                    raise UnusualLayout("its rows do not look like annotations or results")
                self.value()
                size = self.place - start
                data = self.file.read(size, start)
                found.add(start, data, msgspec.json.decode(b"[%b]" % data, type=list[msgspec.Raw]))
            self.place = start + size
            if self.next(b",]") != b",":
                return found
            self.next(b"{", take=False)

    def _several(self, found: Listed) -> int:
        """Add the objects that end before a border in the next window; the bytes they take."""
        size = _WINDOW
        while True:
            data = self.read(size)
            borders = [border.start() + 1 for border in _BORDER.finditer(data)]
            if borders or len(data) < size:
                break
            size *= 4
        # Behind the end of the list nothing parses: the last border before it is looked for.
        low, high, last = 0, len(borders), len(borders)
        while low < high:
            part = data[: borders[last - 1]]
            try:
                raws = msgspec.json.decode(b"[%b]" % part, type=list[msgspec.Raw])
            except (ValueError, RecursionError):
                high = last - 1
            else:
                low, good = last, (part, raws)
            last = (low + high + 1) // 2
        if not low:
            return 0
        part, raws = good
        part.decode("utf-8", "surrogatepass")  # also what nobody will read must be text
        found.add(self.place, part, raws)
        return len(part)


def load(path: Path) -> dict[str, Any]:
    """The JSON of annotations; the rows of its lists are `Row`s.

    Where images are frames of videos, they and their annotations are a sequence of dicts, each
    parsed whenever it is asked for.

    They read from the file, which must stay as it is as long as they are used; its name may go.

    Raises: UnusualLayout, OSError: it is no such JSON, or cannot be read.
    """
    scan, content, lists = _Scan(path), dict[str, Any](), dict[str, Listed]()
    try:
        scan.next(b"{")
        more = scan.next(b'"}', take=False)
        while more != b"}":
            scan.next(b'"', take=False)
            key = scan.value()
            scan.next(b":")
            first = scan.next(b'[{"tfn-0123456789', take=False)
            if key in _LISTS and first == b"[":
                frames = key == "annotations" and _of_videos(lists)
                if frames:  # too many to keep the ids of all
                    lists["images"].ids = None
                lists[key] = scan.objects(ids=not frames)
            else:
                content[key] = scan.value()
            more = scan.next(b",}")
        if not content:
            scan.next(b"}")
        scan.next(b"")
        of_frames = _of_videos(lists) or _tracked(lists)
        if of_frames and "annotations" not in lists and content.get("annotations") is not None:
            raise UnusualLayout("its annotations are no list")
        for key, found in lists.items():
            frames = of_frames and key != "videos"
            content[key] = found.items() if frames else found.rows()
    except (ValueError, RecursionError) as error:
        raise UnusualLayout(str(error)) from error
    return content


def _of_videos(lists: Mapping[str, Listed]) -> bool:
    """Whether images say of which videos they are frames."""
    return "images" in lists and any(
        image.video_id is not msgspec.UNSET for image in lists["images"].layouts()
    )


def _tracked(lists: Mapping[str, Listed]) -> bool:
    """Whether annotations of images say of which tracks they are."""
    tracked, rows = False, lists.get("annotations") if lists.get("images") else None
    for row in rows.layouts() if rows else ():
        if memoryview(row.segmentations):
            return False
        attributes = row.attributes if isinstance(row.attributes, dict) else {}
        ids = row.instance_id, row.track_id, *map(attributes.get, ("instance_id", "track_id"))
        tracked |= any(isinstance(value, int | str) for value in ids)
    return tracked


def load_objects(path: Path) -> Listed:
    """The objects that a file lists. Raises: UnusualLayout, OSError: as of `load`."""
    scan = _Scan(path)
    try:
        found = scan.objects()
        scan.next(b"")
    except (ValueError, RecursionError) as error:
        raise UnusualLayout(str(error)) from error
    return found


def load_json(path: Path, what: str) -> Any:
    """As `files.load_json`, or as `load`; its rows may raise NotJson."""
    files.check_file(path, what)
    try:
        return load(path)
    except UnusualLayout:
        return files.load_json(path, what)


def load_list(path: Path, what: str) -> Any:
    """As `files.load_json`; of a list of objects, each is parsed whenever it is asked for.

    Raises: also ValueError where an item is asked for, and is no JSON.
    """
    files.check_file(path, what)
    try:
        listed = load_objects(path)
    except UnusualLayout:
        return files.load_json(path, what)

    def parsed(index: int) -> Any:
        try:
            return listed.item(index)
        except NotJson as error:
            raise ValueError(f"the {what} file {path} is not valid JSON: {error}") from error

    return Mapped(parsed, range(len(listed)))
