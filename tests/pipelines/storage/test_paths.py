"""Paths on a disk and in object storage do the same for stages."""

import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from pipelines.storage import paths
from pipelines.storage.paths import RemotePath
from tests.object_storage import BUCKET, S3Server


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> paths.AnyPath:
    """An empty place of either kind."""
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("s3")
    return paths.at(f"s3://{BUCKET}/{tmp_path.name}")


def test_files_are_written_whole_read_listed_moved_and_deleted(folder):
    here = folder / "a" / "b.txt"
    assert not here.exists()
    assert not (folder / "a").is_dir()
    paths.write_whole(here, b"one")
    paths.write_whole(folder / "a" / "c.parquet", b"")
    assert (here.read_bytes(), here.read_text(), here.is_file(), here.is_dir()) == (
        b"one",
        "one",
        True,
        False,
    )
    assert (folder / "a").is_dir()
    assert sorted(path.name for path in (folder / "a").iterdir()) == ["b.txt", "c.parquet"]
    assert [path.name for path in (folder / "a").glob("*.parquet")] == ["c.parquet"]
    assert (here.name, here.stem, here.suffix, here.parent) == ("b.txt", "b", ".txt", folder / "a")
    with paths.local_file(here) as local:
        assert (local.read_bytes(), local.suffix) == (b"one", ".txt")
    paths.move(here, folder / "a" / "d.txt")
    assert not here.exists()
    (folder / "a" / "d.txt").unlink()
    (folder / "a" / "d.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (folder / "a" / "d.txt").unlink()
    paths.remove_tree(folder / "a")
    paths.remove_tree(folder / "a")
    assert not (folder / "a").exists()


def test_an_error_while_writing_leaves_what_was_there(folder):
    paths.write_whole(folder / "a.txt", b"old")

    def fail() -> None:
        with paths.whole_file(folder / "a.txt") as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (folder / "a.txt").read_bytes() == b"old"
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_a_file_that_is_not_there_is_named(folder):
    def read() -> bytes:
        with paths.local_file(folder / "gone.txt") as local:
            return local.read_bytes()

    for way in ((folder / "gone.txt").read_bytes, read):
        with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
            way()


def test_addresses_are_joined_as_paths_are():
    path = RemotePath("s3://b/x")
    assert str(path / "y" / "z.txt") == "s3://b/x/y/z.txt"
    assert path.parent == RemotePath("s3://b") == path.parent.parent
    assert path.resolve() is path
    assert pickle.loads(pickle.dumps(path)) == path
    assert sorted([path / "b", path / "a"])[0].name == "a"


def test_a_local_path_becomes_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert paths.at("x/y") == tmp_path / "x" / "y"
    assert paths.at(Path("x")) == tmp_path / "x"


@pytest.mark.parametrize("address", ["ftp://a/b", "s4://a", "://x"])
def test_an_unknown_scheme_is_refused(address):
    with pytest.raises(ValueError, match="begin with s3://, gs://, abfs:// or hf://"):
        paths.at(address)


def test_a_server_that_is_away_for_seconds_is_waited_for(s3: S3Server):
    place = paths.at(f"s3://{BUCKET}/away/a.txt")
    paths.write_whole(place, b"1")
    s3.stop()
    threading.Timer(6, s3.start).start()
    started = time.monotonic()
    assert place.read_bytes() == b"1"
    assert time.monotonic() - started > 3  # it was away
    assert os.environ["AWS_ENDPOINT_URL"] == s3.address
