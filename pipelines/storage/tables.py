"""Parquet files that appear whole or not at all, each with the rejects found while making it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from idol.files import whole_file
from idol.ytvis.videos import Reject

REJECTS = "rejects.parquet"
_REJECTS_KEY = b"idol.rejects"


def commit(
    table: pa.Table,
    path: Path,
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
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=row_group_size)


def shard_rejects(path: Path) -> list[Reject]:
    """The rejects that commit stored with a shard."""
    metadata = pq.read_schema(path).metadata or {}
    return [Reject(**row) for row in json.loads(metadata.get(_REJECTS_KEY, b"[]"))]


def group_rows(path: Path) -> list[int]:
    """Rows of every row group of a parquet file, from its footer."""
    found = pq.read_metadata(path)
    return [found.row_group(group).num_rows for group in range(found.num_row_groups)]


def count_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer."""
    return int(pq.read_metadata(path).num_rows)


def read_rejects(path: str | Path) -> list[Reject]:
    """The rejects of a finished directory, sorted."""
    return [Reject(**row) for row in pq.read_table(Path(path) / REJECTS).to_pylist()]
