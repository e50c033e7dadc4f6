"""Large results files read video by video, without holding more than one video's entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from idol.arrays import Ints
from idol.files import check_file, parse_json
from idol.ytvis.lazy_rows import UnusualLayout, load_objects
from idol.ytvis.repairs import MAX_ID
from idol.ytvis.results import Entry, check_ids


class ResultsIndex:
    """Where the entries of every video stand in a results file; picklable.

    Each video's entries are parsed when they are asked for.

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
        listed = load_objects(self.path)
        ids = [row.video_id for row in listed.ids or ()]
        if any(video_id.__class__ is not int or abs(video_id) > MAX_ID for video_id in ids):
            raise UnusualLayout("the video_id of an entry is no whole number")
        self._starts, self._stops = np.array(listed.starts), np.array(listed.stops)
        self.video_ids: Ints = np.array(ids, np.int64)
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


def _parse(text: bytes, row: int) -> dict[str, Any]:
    try:
        entry = parse_json(text)
    except ValueError as error:
        raise UnusualLayout(f"entry {row} cannot be read by itself: {error}") from error
    if not isinstance(entry, dict):
        raise UnusualLayout(f"entry {row} is no object")
    return entry
