"""Remote videos are copied once, again when they change, and dropped when they are too many."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.sources import video_cache


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(video_cache.tempfile, "tempdir", str(folder))
    video_cache._folder.cache_clear()
    yield folder
    video_cache._folder.cache_clear()


@pytest.fixture
def remote(tmp_path: Path) -> Callable[[str, bytes], str]:
    def make(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return (tmp_path / name).as_uri()

    return make


def content(address: str) -> bytes:
    with video_cache.held(address) as copy:
        return copy.read()


def copies(temporary: Path) -> list[Path]:
    return sorted(temporary.glob("idol-videos-*/*.mp4"))


def test_a_video_is_copied_once_to_a_private_folder(
    temporary: Path, remote: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = remote("a.mp4", b"one")
    assert content(address) == b"one"
    monkeypatch.setattr(video_cache, "_copy", lambda *_: pytest.fail("copied again"))
    assert content(address) == b"one"
    (copy,) = copies(temporary)
    assert copy.parent.stat().st_mode & 0o777 == 0o700


def test_a_video_that_changed_is_copied_again(remote: Callable[[str, bytes], str]) -> None:
    address = remote("a.mp4", b"one")
    assert content(address) == b"one"
    assert content(remote("a.mp4", b"other")) == b"other"
    time = Path(address.removeprefix("file://")).stat().st_mtime_ns
    remote("a.mp4", b"third")  # of the same size, later
    os.utime(address.removeprefix("file://"), ns=(time + 10**9, time + 10**9))
    assert content(address) == b"third"


@pytest.mark.parametrize("kind", ["open", "link", "foreign"])
def test_a_folder_that_another_user_may_have_filled_is_not_used(
    temporary: Path,
    tmp_path: Path,
    remote: Callable[[str, bytes], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    address = remote("a.mp4", b"true")
    assert content(address) == b"true"
    (planted,) = copies(temporary)
    planted.write_bytes(b"planted")
    folder = planted.parent
    if kind == "open":
        folder.chmod(0o777)
    elif kind == "link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        user = os.getuid()
        folder.rename(folder.with_name(f"idol-videos-{user + 1}"))
        monkeypatch.setattr(video_cache.os, "getuid", lambda: user + 1)
    video_cache._folder.cache_clear()
    assert content(address) == b"true"
    assert "is not a private folder of this user" in caplog.text


def test_copies_beyond_the_limit_are_dropped_but_those_in_use(
    temporary: Path, remote: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(video_cache.LIMIT_VARIABLE, "250")
    addresses = [remote(f"{i}.mp4", bytes([i]) * 100) for i in range(4)]
    with video_cache.held(addresses[0]) as oldest:
        for address in addresses[1:]:
            content(address)
        assert oldest.read() == bytes(100)
        assert {path.read_bytes()[0] for path in copies(temporary)} == {0, 3}
    content(addresses[3])  # used last of all
    content(addresses[2])
    assert {path.read_bytes()[0] for path in copies(temporary)} == {2, 3}


def test_a_full_disk_costs_the_copies_and_then_is_told(
    temporary: Path, remote: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert content(remote("a.mp4", b"old")) == b"old"

    def full(source: object, file: object, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video_cache.shutil, "copyfileobj", full)
    with pytest.raises(PipelineError, match=r"has no room for a video .*set TMPDIR"):
        content(remote("b.mp4", b"new"))
    assert copies(temporary) == []


def test_a_remote_video_that_is_not_there_is_said(remote: Callable[[str, bytes], str]) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        video_cache.held(remote("a.mp4", b"one") + "x")
