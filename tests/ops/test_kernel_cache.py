import errno
import hashlib
import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from ops import kernel_cache
from ops.kernel_cache import KernelCache

# Python 3.12 and later warn of forks beside threads, of which the tests' libraries have some.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

KEY = "kernel-sm_90-0123.cubin"
CODE = bytes(range(256)) * 40


def stored(folder: Path) -> list[str]:
    """Entries without the locks beside them."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def build_and_note(log: Path):
    """A build that takes a moment and leaves a line behind."""

    def build() -> bytes:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        return CODE

    return build


def ask(folder: Path, log: Path, barrier, answers) -> None:
    barrier.wait()
    code = KernelCache(folder).get(KEY, build_and_note(log))
    answers.put(hashlib.sha256(code).hexdigest())


def test_many_processes_that_start_together_on_an_empty_cache_build_once(tmp_path):
    folder, log = tmp_path / "cache" / "kernels", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(12), context.Queue()
    processes = [
        context.Process(target=ask, args=(folder, log, barrier, answers)) for _ in range(12)
    ]
    for process in processes:
        process.start()
    digests = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert digests == {hashlib.sha256(CODE).hexdigest()}
    assert len(log.read_text().splitlines()) == 1
    assert stored(folder) == [KEY]


def test_many_threads_of_one_process_build_once(tmp_path):
    cache, log = KernelCache(tmp_path / "kernels"), tmp_path / "log"
    threads = [
        threading.Thread(target=cache.get, args=(KEY, build_and_note(log))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.read_text().splitlines()) == 1


def die_while_building(folder: Path) -> None:
    KernelCache(folder).get(KEY, lambda: os._exit(9))


def test_a_process_that_dies_while_building_holds_up_nobody(tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=die_while_building, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert stored(tmp_path) == []
    assert KernelCache(tmp_path).get(KEY, lambda: CODE) == CODE
    assert stored(tmp_path) == [KEY]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:40] + b"?" + content[41:],
        lambda content: b"x" * len(content),
        lambda content: content[:32],
    ],
    ids=["empty", "cut", "a byte changed", "other bytes", "only the checksum"],
)
def test_a_damaged_entry_is_built_anew_and_said(tmp_path, caplog, damage):
    KernelCache(tmp_path).get(KEY, lambda: CODE)
    path = tmp_path / KEY
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert KernelCache(tmp_path).get(KEY, lambda: CODE) == CODE
    assert "damaged" in caplog.text

    def never() -> bytes:
        raise AssertionError("the entry is whole again")

    assert KernelCache(tmp_path).get(KEY, never) == CODE


def test_a_folder_that_cannot_be_made_costs_only_the_building(tmp_path, caplog):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    cache = KernelCache(occupied / "kernels")
    built = []
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert cache.get(KEY, lambda: built.append(1) or CODE) == CODE
    assert built == [1]
    assert "IDOL_KERNEL_CACHE" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for the superuser")
def test_a_read_only_folder_costs_only_the_building(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert KernelCache(tmp_path).get(KEY, lambda: CODE) == CODE
        assert stored(tmp_path) == []
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("where", ["lock", "write"])
def test_a_disk_that_refuses_costs_only_the_building(tmp_path, monkeypatch, caplog, number, where):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    if where == "lock":
        monkeypatch.setattr(kernel_cache, "open", refuse, raising=False)
    monkeypatch.setattr(kernel_cache.tempfile, "mkstemp", refuse)
    cache = KernelCache(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY, lambda: CODE) == CODE
        assert cache.get(KEY, lambda: b"") == CODE
    assert os.strerror(number) in caplog.text
    assert len(caplog.records) == 1
    assert KEY not in stored(tmp_path)


def test_a_disk_that_fills_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kernel_cache.os, "replace", full)
    assert KernelCache(tmp_path).get(KEY, lambda: CODE) == CODE
    assert stored(tmp_path) == []


def test_an_error_of_the_building_is_the_callers_and_stores_nothing(tmp_path):
    def fail() -> bytes:
        raise RuntimeError("the compiler says no")

    cache = KernelCache(tmp_path)
    with pytest.raises(RuntimeError, match="the compiler says no"):
        cache.get(KEY, fail)
    assert stored(tmp_path) == []
    assert cache.get(KEY, lambda: CODE) == CODE


def test_whoever_waits_too_long_builds_for_itself(tmp_path, monkeypatch, caplog):
    import fcntl

    monkeypatch.setattr(kernel_cache, "PATIENCE", 0.05)
    with open(tmp_path / f".{KEY}.lock", "ab") as held, caplog.at_level(logging.WARNING):
        fcntl.flock(held, fcntl.LOCK_EX)
        assert KernelCache(tmp_path).get(KEY, lambda: CODE) == CODE
    assert "build it here" in caplog.text


def test_the_folder_is_the_named_one_else_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("IDOL_KERNEL_CACHE", str(tmp_path / "a"))
    assert kernel_cache.default_folder() == tmp_path / "a"
    monkeypatch.delenv("IDOL_KERNEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel_cache.default_folder() == tmp_path / "idol-vis" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert kernel_cache.default_folder() == tmp_path / "home" / ".cache" / "idol-vis" / "kernels"
