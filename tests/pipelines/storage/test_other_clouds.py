"""Azure and Google by their emulators, where these are installed.

npm install azurite; pip install gcp-storage-emulator; then have both on PATH.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.storage import paths
from tests.ports import free_ports

pytestmark = pytest.mark.slow

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that Azurite has, the same for everybody."""


@contextlib.contextmanager
def running(port: int, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at this port, be it with an error."""
    program = shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    process = subprocess.Popen(
        [program, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended"
                assert time.monotonic() < deadline, f"{command[0]} does not answer"
                time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@pytest.fixture(params=["abfs", "gs"])
def cloud(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[paths.AnyPath, subprocess.Popen[bytes]]]:
    """An empty folder in such a cloud, and its server."""
    (port,) = free_ports(1)
    paths._storage.cache_clear()
    with contextlib.ExitStack() as stack:
        if request.param == "abfs":
            place = f"http://127.0.0.1:{port}/{ACCOUNT}"
            secret = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={place};"
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", secret)
            words = ["--blobPort", str(port), "--location", str(tmp_path), "--skipApiVersionCheck"]
            process = stack.enter_context(running(port, "azurite-blob", "--silent", *words))
            paths.native("abfs://box")[0].create_dir("box")
        else:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            words = ["--host=127.0.0.1", f"--port={port}", "--in-memory"]
            process = stack.enter_context(running(port, "gcp-storage-emulator", "start", *words))
            wanted = urllib.request.Request(f"http://127.0.0.1:{port}/storage/v1/b?project=p")
            wanted.add_header("Content-Type", "application/json")
            urllib.request.urlopen(wanted, data=b'{"name": "box"}', timeout=30).close()
        yield paths.at(f"{request.param}://box/folder"), process
    paths._storage.cache_clear()


def test_files_are_written_read_listed_moved_and_deleted(cloud, tmp_path):
    folder, process = cloud
    here = folder / "a" / "b.txt"
    assert not here.exists()
    paths.write_whole(here, b"one")
    paths.write_whole(folder / "a" / "c.parquet", b"")
    assert (here.read_bytes(), here.is_file(), (folder / "a").is_dir()) == (b"one", True, True)
    assert [path.name for path in (folder / "a").glob("*.parquet")] == ["c.parquet"]
    with paths.local_file(here) as local, paths.open_input(here) as file:
        assert local.read_bytes() == file.read() == b"one"
    (tmp_path / "made" / "x").mkdir(parents=True)
    (tmp_path / "made" / "x" / "y.txt").write_text("y")
    paths.send_folder(tmp_path / "made", folder / "sent")
    assert (folder / "sent" / "x" / "y.txt").read_text() == "y"
    paths.move(folder / "a" / "c.parquet", folder / "a" / "d.parquet")
    (folder / "a" / "d.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "a" / "d.parquet").read_bytes()
    process.send_signal(signal.SIGSTOP)
    threading.Timer(10, process.send_signal, [signal.SIGCONT]).start()
    started = time.monotonic()
    assert here.read_bytes() == b"one"
    assert time.monotonic() - started > 8  # it was away
    paths.remove_tree(folder / "a")
    assert not here.exists()
