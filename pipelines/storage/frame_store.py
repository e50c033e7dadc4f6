"""Frames that are read one by one: files of Arrow messages, and tables that say where they lie.

Shard n is frames-n.arrows, an Arrow stream with a message per row of FRAMES, and shard-n.parquet,
a table FRAME_INDEX. Any Arrow reader opens the former; with a row of the latter one frame is read
with one request and nothing else. Parquet does not do that: with a row group per frame its footer
weighs 0.7 KB a frame and takes 3 ms to parse for 512, at every read or in 4 MB of memory.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from idol.arrays import Ints
from idol.ytvis.videos import Reject
from pipelines.errors import ManifestError, intact
from pipelines.storage import layout, manifest, paths, schemas, tables
from pipelines.storage.paths import AnyPath, whole_file

_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
_FILES_OPEN = 64
_READERS = 16  # of small tables at once: in object storage each is a request


def commit(
    rows: Sequence[Mapping[str, Any]], out: AnyPath, number: int, *, rejects: Sequence[Reject] = ()
) -> None:
    """Write a shard of FRAMES: the frames, then the table that says that they are there."""
    places = []
    with whole_file(layout.frames_path(out, number)) as temporary, temporary.open("wb") as file:
        file.write(schemas.FRAMES.serialize())
        for row in rows:
            (batch,) = schemas.table([row], schemas.FRAMES).to_batches()
            message = batch.serialize()
            same = ("video_id", "frame_index", "height", "width")
            places.append(
                {name: row[name] for name in same}
                | {
                    "offset": file.tell(),
                    "length": message.size,
                    "checksum": zlib.crc32(message),
                    "instance_ids": [one["instance_id"] for one in row["instances"]],
                }
            )
            file.write(message)
        file.write(_END)
    table = schemas.table(places, schemas.FRAME_INDEX)
    tables.commit(table, layout.shard_path(out, number), rejects=rejects)


def read_index(directory: str | AnyPath, columns: Sequence[str]) -> tuple[pa.Table, Ints]:
    """Columns of FRAME_INDEX over all shards of a finished directory, and the shard of each row.

    Raises: ManifestError: it is unfinished or damaged, or has another number of rows than it says.
    """
    folder, shards = paths.at(directory), manifest.shard_paths(directory, layout.PREPARE)
    there = {path.name for path in folder.glob("frames-*.arrows")}
    for number in range(len(shards)):
        name = layout.frames_path(folder, number).name
        if name not in there:
            raise ManifestError(str(folder), f"lost {name}", "Make it again with --overwrite.")
    read = functools.partial(tables.read, schema=schemas.FRAME_INDEX, columns=columns)
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(read, shards))
    index = pa.concat_tables(parts) if parts else schemas.FRAME_INDEX.empty_table().select(columns)
    stated = manifest.read(directory, layout.PREPARE).rows
    if len(index) != stated:
        reason = f"has {len(index)} frames in its shards, its manifest says {stated}"
        raise ManifestError(str(folder), reason, "Make it again with --overwrite.")
    return index, np.repeat(np.arange(len(parts)), [len(part) for part in parts])


class FrameReader:
    """Rows of FRAMES by their place, in any thread. directory: a finished one with frames."""

    def __init__(self, directory: str | AnyPath) -> None:
        self._folder = paths.at(directory)
        self._opened = functools.lru_cache(_FILES_OPEN)(paths.open_input)

    def read(self, shard: int, offset: int, length: int, checksum: int) -> dict[str, Any]:
        """One row; arguments as FRAME_INDEX has them.

        Raises:
            FileNotFoundError, OSError: the file has gone, or there is no answer.
            ManifestError: it is damaged.
        """
        path = layout.frames_path(self._folder, shard)
        with intact(path):
            data = self._opened(path).read_at(length, offset)
            if zlib.crc32(data) != checksum:
                raise ValueError(f"the checksum of the frame at byte {offset} is wrong")
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), schemas.FRAMES)
            rows: list[dict[str, Any]] = batch.to_pylist()
        return rows[0]
