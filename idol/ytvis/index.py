"""Large results files read video by video, without holding more than one video's entries."""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from idol.arrays import Ints
from idol.files import check_file, parse_json
from idol.ytvis.results import Entry, check_ids

# Between two entries: the next object does not begin like a mask. A wrong border leaves pieces
# that are no JSON objects, which reading notices.
_BORDER = re.compile(rb'\}\s*,\s*\{(?=\s*"(?!size"|counts"))')
_VIDEO = re.compile(rb'"video_id"\s*:\s*(-?[0-9]{1,18})\s*[,}]')
_WINDOW = 32 << 20  # bytes after which what was looked at is given back to the system
_EDGE = b" \t\r\n"


class UnusualLayout(ValueError):
    """The file is written in a way that this reader does not know; read it as a whole."""


class ResultsIndex:
    """Where the entries of every video stand in a results file.

    The file is looked through once, for borders between entries and their video ids, and each
    video's entries are parsed when asked for. A list of complete JSON objects with commas between
    them can be cut in one way only, so a piece that parses is an entry.

    video_ids: (N,) of every entry, in the file's order
    """

    def __init__(self, path: Path | str) -> None:
        """Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        UnusualLayout: the file must be read as a whole.
        """
        self.path = Path(path)
        check_file(self.path, "results")
        self._starts, self._stops, self.video_ids = self._scan()
        order = np.argsort(self.video_ids, kind="stable")
        known, first = np.unique(self.video_ids[order], return_index=True)
        parts = np.split(order, first[1:]) if len(known) else []
        self._rows = {int(v): rows for v, rows in zip(known, parts, strict=True)}

    def __len__(self) -> int:
        return len(self.video_ids)

    def rows(self, video_id: int) -> list[int]:
        """Positions in the file of a video's entries."""
        rows = self._rows.get(video_id)
        return [] if rows is None else rows.tolist()

    def of(self, video_id: int) -> tuple[list[Entry], list[int]]:
        """A video's entries, as in the file, and their positions.

        Raises: UnusualLayout: the file must be read as a whole.
        """
        rows = self.rows(video_id)
        entries = []
        for row, text in zip(rows, self._texts(rows), strict=True):
            entry = _parse(text, row)
            if entry.get("video_id") != video_id:
                raise UnusualLayout(f"entry {row} has video_id {entry.get('video_id')!r}")
            if "first_frame" in entry:
                raise UnusualLayout(f"entry {row} is of a clip")
            entries.append(entry)
        return entries, rows

    def _texts(self, rows: list[int]) -> list[bytes]:
        """The JSON of entries, by their positions."""
        texts = []
        with self.path.open("rb", buffering=0) as file:
            for row in rows:
                start, stop = int(self._starts[row]), int(self._stops[row])
                file.seek(start)
                texts.append(file.read(stop - start))
                if len(texts[-1]) != stop - start:
                    raise UnusualLayout(f"bytes {start} to {stop} cannot be read at once")
        return texts

    def check_videos(self, videos: Iterable[int], categories: Mapping[int, str]) -> None:
        """Raise ValueError with the index of the first entry whose video the truth does not know.

        videos, categories: of the truth
        """
        known = np.fromiter(videos, np.int64)
        unknown = np.flatnonzero(~np.isin(self.video_ids, known))
        if len(unknown):
            row = int(unknown[0])
            entry = self.of(int(self.video_ids[row]))[0][0]
            check_ids(entry, row, known.tolist(), categories, compat=False)

    def _scan(self) -> tuple[Ints, Ints, Ints]:
        none = np.empty(0, np.int64)
        if not self.path.stat().st_size:
            raise UnusualLayout("the file is empty")
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            first, last = _inside(data)
            if first == last:
                return none, none, none
            starts, stops, ids = [first], [], []
            seen = 0
            for border in itertools.chain(_BORDER.finditer(data, first, last), [None]):
                stop = last if border is None else border.start() + 1
                found = _VIDEO.search(data, starts[-1], stop)
                if found is None:
                    raise UnusualLayout(f"no video_id between bytes {starts[-1]} and {stop}")
                ids.append(int(found[1]))
                stops.append(stop)
                if border is not None:
                    starts.append(border.end() - 1)
                if stop - seen > _WINDOW:
                    seen = _forget(data, stop)
        return np.array(starts, np.int64), np.array(stops, np.int64), np.array(ids, np.int64)


def _inside(data: mmap.mmap) -> tuple[int, int]:
    """First byte of the first entry, and the byte after the last one; equal for an empty list."""
    first, last = 0, len(data)
    while first < last and data[first] in _EDGE:
        first += 1
    while last > first and data[last - 1] in _EDGE:
        last -= 1
    if last - first < 2 or data[first] != ord("[") or data[last - 1] != ord("]"):
        raise UnusualLayout("the file is no JSON list")
    first, last = first + 1, last - 1
    while first < last and data[first] in _EDGE:
        first += 1
    while last > first and data[last - 1] in _EDGE:
        last -= 1
    return first, last


def _parse(text: bytes, row: int) -> dict[str, Any]:
    try:
        entry = parse_json(text)
    except ValueError as error:
        raise UnusualLayout(f"entry {row} cannot be read by itself: {error}") from error
    if not isinstance(entry, dict):
        raise UnusualLayout(f"entry {row} is no object")
    return entry


def _forget(data: mmap.mmap, stop: int) -> int:
    """Give memory before this place back: a mapped file counts as ours as far as it was read."""
    pages = stop // mmap.PAGESIZE * mmap.PAGESIZE
    if pages and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, 0, pages)
    return stop
