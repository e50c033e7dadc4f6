"""A table is whole or absent, and carries the rejects found while making it."""

import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import ManifestError
from pipelines.storage import schemas, tables
from tests.pipelines.storage.test_claims import REJECT, shard


def test_a_failed_write_leaves_neither_the_file_nor_a_remnant(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(tables.pq.ParquetWriter, "write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        tables.commit(shard(0), tmp_path / "shard-00000.parquet")
    assert os.listdir(tmp_path) == []


def test_equal_tables_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        tables.commit(shard(0), tmp_path / name, rejects=[REJECT])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_reader_of_parquet_reads_a_table(tmp_path):
    tables.commit(shard(0), tmp_path / "a", rejects=[REJECT])
    assert pq.read_table(tmp_path / "a").to_pylist() == shard(0).to_pylist()
    assert tables.read(tmp_path / "a", schemas.REJECTS).to_pylist() == shard(0).to_pylist()
    assert tables.shard_rejects(tmp_path / "a") == [REJECT]


def test_a_flipped_bit_or_a_lost_end_never_gives_other_rows(tmp_path):
    path, rng = tmp_path / "a", random.Random(0)
    rows = [
        {"video_id": i, "path": f"{rng.random()}", "reason": "the frame does not exist"}
        for i in range(50)
    ]
    tables.commit(schemas.table(rows, schemas.REJECTS), path, rejects=[REJECT])
    data = path.read_bytes()

    def found(broken: bytes) -> bool:
        path.write_bytes(broken)
        try:
            read, rejects = tables.read(path, schemas.REJECTS), tables.shard_rejects(path)
        except ManifestError as error:
            return str(path) in str(error) and "Make it again with --overwrite" in str(error)
        assert (read.to_pylist(), rejects) == (rows, [REJECT])
        return False

    missed = 0
    for bit in rng.sample(range(8 * len(data)), 600):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        missed += not found(bytes(broken))
    assert missed <= 20  # bits that no reader looks at
    assert all(found(data[:length]) for length in (0, 3, 11, len(data) // 2, len(data) - 1))
    assert found(b"\0" * len(data))


def test_a_disk_that_fails_is_not_called_a_damaged_table(tmp_path):
    with pytest.raises(FileNotFoundError):
        tables.read(tmp_path / "none.parquet", schemas.REJECTS)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"video_id": pa.array([1], pa.int64()), "path": ["a"]}), "reason"),
        (pa.table({"video_id": ["1"], "path": ["a"], "reason": ["r"]}), "'video_id' is string"),
        (
            pa.table({"video_id": pa.array([None], pa.int64()), "path": ["a"], "reason": ["r"]}),
            "'video_id' has 1 empty rows",
        ),
    ],
)
def test_a_table_of_another_schema_is_refused_by_name(tmp_path, table, message):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match=rf"a\.parquet is damaged.*{message}"):
        tables.read(tmp_path / "a.parquet", schemas.REJECTS)
