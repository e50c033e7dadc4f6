import errno
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from idol.files import load_json, whole_file, write_whole


def test_a_file_replaces_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "results.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o044 == 0o044


def test_after_an_error_the_old_file_stays_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_whole(path, b"old")

    def fail_half_way() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"videos": [', "is not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"id": ' + b"1" * 5000 + b"}", "is not valid JSON: a number has thousands of digits"),
        (b'"\xff"', "is not valid JSON"),
    ],
)
def test_what_is_no_json_is_told_with_the_name_of_the_file(
    tmp_path: Path, text: bytes, reason: str
) -> None:
    path = tmp_path / "truth.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=reason) as caught:
        load_json(path, "truth")
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the truth file"):
        load_json(tmp_path / "none.json", "truth")
    with pytest.raises(IsADirectoryError, match="name the truth file in it"):
        load_json(tmp_path, "truth")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # as Arrow says it, without a file
        RuntimeError("I/O error: No space left on device (os error 28)"),  # as safetensors does
    ],
)
def test_a_full_disk_is_told_with_the_file_that_was_to_be_written(
    tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        _fail(tmp_path / "a.bin", error)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.bin"))
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_a_disk_without_room_is_about_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(OSError, match="No space left on device"):
        _fail(tmp_path / "a.pt", RuntimeError("PytorchStreamWriter failed writing file"))
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="of our own"):
        _fail(tmp_path / "a.pt", RuntimeError("of our own"))


def test_a_folder_that_cannot_be_written_to_is_told_with_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".a.x7f3.html"))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError) as caught:
        write_whole(tmp_path / "a.html", b"")
    assert caught.value.filename == str(tmp_path / "a.html")


def _fail(path: Path, error: Exception) -> None:
    with whole_file(path):
        raise error
