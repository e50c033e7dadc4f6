"""Compiled kernels on disk: built once, by one process, however many start together.

An entry is one file, moved into place when it is whole: a checksum, then the machine code. Whatever
goes wrong with the disk costs time and never the result: a damaged entry is built again, and where
nothing can be written, this process builds for itself and keeps what it built in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

FOLDER_VARIABLE = "IDOL_KERNEL_CACHE"

PATIENCE = 120.0
"""Seconds to wait for another process that builds the same entry before building it oneself."""

_TRIES_A_SECOND = 50
_CHECKSUM = hashlib.sha256


def default_folder() -> Path | None:
    """$IDOL_KERNEL_CACHE, or idol-vis/kernels in the user's cache; None where there is no home."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "idol-vis" / "kernels"
    try:
        return Path.home() / ".cache" / "idol-vis" / "kernels"
    except RuntimeError:  # a user without a home, as in some containers
        return None


class KernelCache:
    """Bytes by key, in a folder and in memory; safe for threads and for processes."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._kept: dict[str, bytes] = {}
        self._complained = False

    def get(self, key: str, build: Callable[[], bytes]) -> bytes:
        """The entry of that key, from memory, from disk, or else from build().

        key: names a file: letters, digits, `_`, `-` and `.`
        Raises: whatever build raises; nothing is stored then.
        """
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._from_disk(key, build)
            return self._kept[key]

    def _from_disk(self, key: str, build: Callable[[], bytes]) -> bytes:
        if self.folder is None:
            return build()
        path = self.folder / key
        if (content := self._read(path)) is not None:
            return content
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._complain(error)
            return build()
        with self._alone(path):
            # Whoever held the lock before has probably built it.
            if (content := self._read(path)) is not None:
                return content
            content = build()
            self._write(path, content)
        return content

    def _read(self, path: Path) -> bytes | None:
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        size = _CHECKSUM().digest_size
        if len(stored) > size and _CHECKSUM(stored[size:]).digest() == stored[:size]:
            return stored[size:]
        _log.warning("the compiled kernel %s is damaged and is built again", path)
        return None

    def _write(self, path: Path, content: bytes) -> None:
        temporary = None
        try:
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(descriptor, "wb") as file:
                file.write(_CHECKSUM(content).digest() + content)
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            self._complain(error)

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Hold the entry's lock, or go on without it: then it is built twice, and that is all."""
        try:
            import fcntl

            file = open(path.with_name(f".{path.name}.lock"), "ab")  # noqa: SIM115
        except (ImportError, OSError) as error:
            if isinstance(error, OSError):  # else there are no such locks on this system
                self._complain(error)
            yield
            return
        # The operating system drops the lock when the file is closed, and so when a process dies.
        with file:
            end = time.monotonic() + PATIENCE
            while time.monotonic() <= end:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(1 / _TRIES_A_SECOND)
                except OSError as error:  # a network file system without locks
                    self._complain(error)
                    break
            else:
                _log.warning("waited %.0f s for %s, and build it here", PATIENCE, path)
            yield

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            advice = f"set {FOLDER_VARIABLE} to a folder that can be written"
            _log.warning("compiled kernels are kept in memory only (%s); %s", error, advice)
