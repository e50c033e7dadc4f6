"""JSON files of any size: a row of a list is parsed when it is read, and not before."""

from __future__ import annotations

import codecs
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from idol import files
from idol.files import parse_json
from idol.spool import Mapped

_CHUNK = 1 << 16  # bytes
_HELD = 32 << 20  # bytes of rows after which the file's memory is given back to the system
_LISTS = ("videos", "annotations")


class WholeFileOnly(Exception):
    """The file is written in a way that only reading it as a whole can judge."""


class NotJson(Exception):
    """A row is no JSON; no ValueError, which would be a fault of its video alone."""


class Ids(msgspec.Struct, gc=False):
    """What decides which annotations belong to which video."""

    id: Any = msgspec.UNSET
    video_id: Any = msgspec.UNSET
    category_id: Any = msgspec.UNSET


class _Source:
    """The mapped file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._read = 0

    def parse(self, raw: msgspec.Raw) -> Any:
        """The JSON in a part of it. Raises: NotJson."""
        self.count(len(memoryview(raw)))
        try:
            return parse_json(raw)
        except ValueError as error:
            raise NotJson(str(error)) from error

    def count(self, size: int) -> None:
        """Take note that so much was read: its pages count as memory of this process."""
        self._read += size
        if self._read > _HELD and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)
            self._read = 0


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


def load_list(path: Path, what: str) -> Any:
    """The JSON of a file; of a list, each item is parsed whenever it is asked for.

    what:    what messages call the file
    Raises: FileNotFoundError, IsADirectoryError, ValueError: as of `files.load_json`; an item may
            be what is no JSON, and raises when it is asked for.
    """
    files.check_file(path, what)
    try:
        source = _Source(path)
        items = msgspec.json.decode(source.data, type=list[msgspec.Raw])
    except (ValueError, RecursionError):
        return files.load_json(path, what)
    source.count(len(source.data))

    def parsed(raw: msgspec.Raw) -> Any:
        try:
            return source.parse(raw)
        except NotJson as error:
            raise ValueError(f"the {what} file {path} is not valid JSON: {error}") from error

    return Mapped(parsed, items)


def load_json(path: Path, what: str) -> Any:
    """As `files.load_json`; of YouTube-VIS JSON the rows are `Row`s, which may raise NotJson."""
    files.check_file(path, what)
    try:
        return load(path)
    except WholeFileOnly:
        return files.load_json(path, what)


def whole(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row parsed, once for all that is looked up in it."""
    return row.whole() if isinstance(row, Row) else row


def load(path: Path) -> dict[str, Any]:
    """The JSON of a YouTube-VIS file, of which the rows of videos and annotations are `Row`s.

    A Row takes some 200 bytes. They read from the file, which must stay as it is as long as they
    are used; its name may go.

    Raises:
        WholeFileOnly: the file is no such JSON, or holds what msgspec reads otherwise than json.
        OSError: it cannot be read.
    """
    try:
        source = _Source(path)
        # Rows that nobody reads are never decoded, but the file is no JSON if they are no text.
        text = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        for start in range(0, len(source.data), _CHUNK):
            text.decode(source.data[start : start + _CHUNK])
        text.decode(b"", final=True)
        content: dict[str, Any] = msgspec.json.decode(source.data, type=dict[str, msgspec.Raw])
        for key, raw in content.items():
            if key in _LISTS:
                listed = msgspec.json.decode(raw, type=list[msgspec.Raw] | None)
                content[key] = listed and [
                    Row(msgspec.json.decode(row, type=Ids), source.parse, row) for row in listed
                ]
            else:
                content[key] = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise WholeFileOnly(str(error)) from error
    if "videos" not in content or "images" in content:
        raise WholeFileOnly("it has no videos, or images")
    source.count(len(source.data))
    return content
