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


@pytest.mark.parametrize(
    ("address", "kind", "inner"),
    [
        ("abfs://box@account.dfs.core.windows.net/a/b", "abfs", "box/a/b"),
        ("abfs://box@account.dfs.core.windows.net", "abfs", "box"),
        ("gs://anonymous@bucket/a/b/", "gcs", "bucket/a/b"),
        ("gs://bucket", "gcs", "bucket"),
    ],
)
def test_other_clouds_have_names_of_their_own_for_a_path(address, kind, inner):
    system, found = paths.native(address)
    assert (system.type_name, found) == (kind, inner)


def test_a_connection_string_says_which_account_of_azure(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=me;AccountKey=Zm9v")
    paths._storage.cache_clear()
    assert paths.native("abfs://box@me.dfs.core.windows.net/a")[1] == "box/a"
    assert paths.native("abfs://box/a")[1] == "box/a"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountKey=Zm9v")
    paths._storage.cache_clear()
    with pytest.raises(ValueError, match=r"abfs://box/a cannot be opened.*AccountName"):
        paths.native("abfs://box/a")


def test_a_folder_is_sent_with_the_files_at_its_top_last(s3: S3Server, tmp_path, monkeypatch):
    for name in ("a.txt", "z/b.txt", "z/y/c.txt"):
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_text(name)
    target = paths.at(f"s3://{BUCKET}/{tmp_path.name}/sent")
    paths.send_folder(tmp_path / "made", target)
    for name in ("a.txt", "z/b.txt", "z/y/c.txt"):
        assert (target / name).read_text() == name
    sent = []
    monkeypatch.setattr("pyarrow.fs.copy_files", lambda source, *to, **how: sent.append(source))
    paths.send_folder(tmp_path / "made", target)
    assert [Path(source).name for source in sent] == ["z", "a.txt"]


def test_only_a_bucket_can_be_written_to():
    assert all(map(paths.is_bucket, ("s3://b", "gs://b/x", "abfs://c@a.dfs.core.windows.net/x")))
    assert not any(map(paths.is_bucket, ("hf://a/b", "s3", "/s3/x", "https://a/b", "file:///a")))


def test_a_local_path_as_it_was_written():
    assert paths.as_written("x/../y") == Path("x/../y")
    assert paths.as_written(f"s3://{BUCKET}/x/") == RemotePath(f"s3://{BUCKET}/x")


def test_a_server_that_is_away_for_seconds_is_waited_for(s3: S3Server):
    place = paths.at(f"s3://{BUCKET}/away/a.txt")
    paths.write_whole(place, b"1")
    s3.stop()
    threading.Timer(6, s3.start).start()
    started = time.monotonic()
    assert place.read_bytes() == b"1"
    assert time.monotonic() - started > 3  # it was away
    assert os.environ["AWS_ENDPOINT_URL"] == s3.address
