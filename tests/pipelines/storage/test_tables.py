"""A table is whole or absent, and carries the rejects found while making it."""

import os

import pytest

from pipelines.storage import tables
from tests.pipelines.storage.test_claims import REJECT, shard


def test_a_failed_write_leaves_neither_the_file_nor_a_remnant(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(tables.pq, "write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        tables.commit(shard(0), tmp_path / "shard-00000.parquet")
    assert os.listdir(tmp_path) == []


def test_equal_tables_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        tables.commit(shard(0), tmp_path / name, rejects=[REJECT])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
