"""A row for each instance of each frame: written while the frames come, read back for exports."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from idol.files import whole_file
from idol.instances import Instances
from pipelines.storage import schemas
from pipelines.stream import places

Row = dict[str, Any]
"""As of schemas.TRACK_ROWS."""

_GROUP = 4096  # rows of the table that are in memory at once


def of_frame(video: str, instances: Instances) -> list[Row]:
    """The rows of a frame, in descending score.

    video: the name of its source
    """
    time = None if math.isnan(instances.time) else round(instances.time, 4)
    about = {"video": video, "frame": instances.number, "time": time}
    columns = zip(
        instances.track_ids.tolist(),
        instances.names,
        instances.scores.tolist(),
        instances.boxes.tolist(),
        instances.areas.tolist(),
        instances.counts,
        strict=True,
    )
    return [
        {
            **about,
            "track_id": track_id,
            "category": category,
            "score": round(score, 5),
            "box": box,
            "area": area,
            "segmentation": {"size": list(instances.size), "counts": counts.decode("ascii")},
        }
        for track_id, category, score, box, area, counts in columns
    ]


class RowWriter:
    """Writes ROWS line by line, so that it can be followed and a killed process loses none, and
    TABLE, which has its name once it is whole.

    Raises: OSError: a file cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self._file: BinaryIO = (out / places.ROWS).open("wb")
        self._whole = ExitStack()
        temporary = self._whole.enter_context(whole_file(out / places.TABLE))
        self._table = pq.ParquetWriter(temporary, schemas.TRACK_ROWS)
        self._waiting: list[Row] = []

    def __enter__(self) -> Self:
        return self

    def add(self, rows: Sequence[Row]) -> None:
        """Write the rows of the next frame."""
        for row in rows:
            self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        self._waiting += rows
        if len(self._waiting) >= _GROUP:
            self._write_group()

    def _write_group(self) -> None:
        if self._waiting:
            self._table.write_table(pa.Table.from_pylist(self._waiting, schemas.TRACK_ROWS))
        self._waiting = []

    def finish(self) -> None:
        """Put the table in its place."""
        self._file.close()
        self._write_group()
        self._table.close()
        self._whole.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop the table, and rows of which there are none, unless finish was called."""
        if not self._file.closed:
            empty = self._file.tell() == 0
            self._file.close()
            if empty:  # as no frame came: the next try is to find a free place
                Path(self._file.name).unlink()
        self._table.close()
        self._whole.__exit__(EOFError, EOFError(), None)


@dataclass(slots=True)
class TrackRows:
    """The rows of one track in the file: its category, and where each row begins."""

    category: str = ""
    places: array[int] = field(default_factory=lambda: array("q"))


class StoredRows:
    """The rows of a file that RowWriter wrote, of which few are in memory.

    tracks: by identity, in the order of their first frames. A track's category is that of its last
            row, which has seen all of it
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tracks: dict[int, TrackRows] = {}
        place = 0
        with path.open("rb") as file:
            for line in file:
                row = json.loads(line)
                track = self.tracks.setdefault(row["track_id"], TrackRows())
                track.category = row["category"]
                track.places.append(place)
                place += len(line)

    @property
    def categories(self) -> list[str]:
        """The names of the tracks' categories, sorted."""
        return sorted({track.category for track in self.tracks.values()})

    def frames(self) -> Iterator[list[Row]]:
        """The rows of each frame that has some, in order; with the categories of their tracks."""
        with self._path.open("rb") as file:
            rows: list[Row] = []
            for row in map(json.loads, file):
                if rows and row["frame"] != rows[0]["frame"]:
                    yield rows
                    rows = []
                rows.append(self._named(row))
            if rows:
                yield rows

    def of_track(self, track_id: int) -> Iterator[Row]:
        """The rows of one track, in order."""
        with self._path.open("rb") as file:
            for place in self.tracks[track_id].places:
                file.seek(place)
                yield self._named(json.loads(file.readline()))

    def _named(self, row: Mapping[str, Any]) -> Row:
        return {**row, "category": self.tracks[row["track_id"]].category}
