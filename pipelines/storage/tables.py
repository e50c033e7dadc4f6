"""Parquet files that appear whole or not at all, each with the rejects found while making it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from idol.files import whole_file

REJECTS = "rejects.parquet"

_REJECTS_KEY = b"idol.rejects"


def commit(
    table: pa.Table,
    path: Path,
    *,
    rejects: Sequence[Mapping[str, Any]] = (),
    row_group_size: int | None = None,
) -> None:
    """Write a parquet file that is either whole or absent.

    rejects: {video_id, path, reason} found while making this shard. They travel in the file
             itself, so that a resumed stage knows them without redoing the shard.
    """
    if rejects:
        metadata = {**(table.schema.metadata or {}), _REJECTS_KEY: json.dumps(list(rejects))}
        table = table.replace_schema_metadata(metadata)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=row_group_size)


def shard_rejects(path: Path) -> list[dict[str, Any]]:
    """The rejects that commit stored with a shard."""
    metadata = pq.read_schema(path).metadata or {}
    found: list[dict[str, Any]] = json.loads(metadata.get(_REJECTS_KEY, b"[]"))
    return found


def count_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer."""
    return int(pq.read_metadata(path).num_rows)


def read_rejects(path: str | Path) -> list[dict[str, Any]]:
    """The rejects of a finished directory: {video_id, path, reason}, sorted."""
    rows: list[dict[str, Any]] = pq.read_table(Path(path) / REJECTS).to_pylist()
    return rows
