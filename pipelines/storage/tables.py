"""Parquet files that appear whole or not at all, each with the rejects found while making it.

A flipped bit is found: pages carry Parquet's checksums, and the footer, which has none, one of ours
in the eight bytes before it, where readers of Parquet look at nothing.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from idol.ytvis.videos import Reject
from pipelines.errors import intact
from pipelines.storage import paths, schemas
from pipelines.storage.paths import AnyPath, whole_file

REJECTS = "rejects.parquet"
_REJECTS_KEY = b"idol.rejects"
_MARK = b"IDOL"  # before the checksum of the footer
_TAIL = 8  # bytes at the end of a Parquet file: the length of the footer, and a word


def commit(
    table: pa.Table,
    path: AnyPath,
    *,
    rejects: Sequence[Reject] = (),
    row_group_size: int | None = None,
) -> None:
    """Write a parquet file that is either whole or absent.

    rejects: found while making this shard; in the file itself, so that a resumed stage knows them
    """
    if rejects:
        text = json.dumps([reject._asdict() for reject in rejects])
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _REJECTS_KEY: text})
    commit_groups([table], table.schema, path, row_group_size)


def commit_groups(
    groups: Iterable[pa.Table], schema: pa.Schema, path: AnyPath, row_group_size: int | None = None
) -> None:
    """As commit, of tables that become a row group each, one of which is in memory at a time.

    row_group_size: rows of a group at most; None: as pyarrow has it
    """
    with whole_file(path) as temporary:
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            write_page_checksum=True,
            # Readers skip rows by them; nothing of ours has rows to skip, and no checksum has them.
            write_statistics=False,
        ) as writer:
            for group in groups:
                writer.write_table(group, row_group_size)
        with temporary.open("r+b") as file:
            start, footer = _footer(file)
            file.seek(start)
            file.write(_MARK + zlib.crc32(footer).to_bytes(4, "little") + footer)


def _footer(file: Any) -> tuple[int, bytes]:
    """Where the footer begins, and its bytes with the tail. Raises: ValueError: it has none."""
    file.seek(0, os.SEEK_END)
    end = file.tell()
    file.seek(max(0, end - _TAIL))
    start = end - _TAIL - int.from_bytes(file.read(4), "little")
    if start < _TAIL:
        raise ValueError("it is cut short")
    file.seek(start)
    return start, file.read()


@contextmanager
def opened(path: AnyPath) -> Iterator[pq.ParquetFile]:
    """A table that commit wrote, with every checksum looked at.

    Raises: ManifestError: it is damaged, also while it is read in the block.
    """
    with intact(path), paths.open_input(path) as file:
        start, footer = _footer(file)
        file.seek(start - _TAIL)
        mark, stated = file.read(4), file.read(4)
        if mark == _MARK and int.from_bytes(stated, "little") != zlib.crc32(footer):
            raise ValueError("the checksum of its footer is wrong")
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            yield table


def read_groups(path: AnyPath, schema: pa.Schema) -> Iterator[pa.Table]:
    """As read, a row group at a time."""
    with opened(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            schemas.check(table, schema)
            yield table


def read(path: AnyPath, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a table of this schema. Raises: ManifestError: it is damaged, or another."""
    with opened(path) as file:
        table = file.read(columns=None if columns is None else list(columns))
        schemas.check(table, schema, columns)
        return table


def shard_footer(path: AnyPath) -> tuple[list[Reject], int]:
    """The rejects that commit stored with a shard, and its number of rows."""
    with opened(path) as file:
        metadata = file.schema_arrow.metadata or {}
        rejects = [Reject(**row) for row in json.loads(metadata.get(_REJECTS_KEY, b"[]"))]
        return rejects, int(file.metadata.num_rows)


def shard_rejects(path: AnyPath) -> list[Reject]:
    """The rejects that commit stored with a shard."""
    return shard_footer(path)[0]


def group_rows(path: AnyPath) -> list[int]:
    """Rows of every row group of a parquet file, from its footer."""
    with opened(path) as file:
        found = file.metadata
        return [found.row_group(group).num_rows for group in range(found.num_row_groups)]


def count_rows(path: AnyPath) -> int:
    """Rows of a parquet file, from its footer."""
    with opened(path) as file:
        return int(file.metadata.num_rows)


def read_rejects(path: str | AnyPath) -> list[Reject]:
    """The rejects of a finished directory, sorted."""
    table = read(paths.at(path) / REJECTS, schemas.REJECTS)
    return [Reject(**row) for row in table.to_pylist()]
