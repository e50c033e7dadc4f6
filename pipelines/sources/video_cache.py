"""Copies of remote video files on this machine, because the decoder reads local files only.

A copy belongs to one version of the remote file: its name is a hash of the address, the size and
the time of change. Copies beyond a limit are dropped, the one that was used longest ago first.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs

from idol.files import whole_file
from pipelines.errors import PipelineError
from pipelines.storage import paths

LIMIT_VARIABLE = "IDOL_VIDEO_CACHE_BYTES"
"""Bytes that the copies of one user may take on a machine, those in use apart."""
_LIMIT = 20 * 2**30
_STALE_S = 3600.0  # a copy that has not grown for so long was left by a killed process

_log = logging.getLogger(__name__)


def held(address: str) -> BinaryIO:
    """A copy of a remote file, opened; it is not dropped before this is closed.

    Raises:
        OSError, ValueError: the remote file cannot be read.
        PipelineError: there is no room for the copy.
    """
    filesystem, inner = paths.native(address)
    info = filesystem.get_file_info(inner)
    if info.type != fs.FileType.File:
        raise FileNotFoundError("there is no such file")
    version = f"{address}\0{info.size}\0{info.mtime_ns}"
    suffix = re.sub(r"[^.\w].*", "", Path(inner).suffix.lower())
    target = _folder() / (hashlib.sha256(version.encode()).hexdigest()[:32] + suffix)
    while True:
        if not target.exists():
            _copy(filesystem, inner, target)
        try:
            copy = target.open("rb")
        except FileNotFoundError:  # another process has dropped it
            continue
        # Held by the open file, so that the end of the process releases it.
        fcntl.flock(copy, fcntl.LOCK_SH)
        if target.exists() and os.path.samestat(os.fstat(copy.fileno()), target.stat()):
            os.utime(target)
            _drop(int(os.environ.get(LIMIT_VARIABLE, _LIMIT)))
            return copy
        copy.close()


def _copy(filesystem: fs.FileSystem, inner: str, target: Path) -> None:
    for first in (True, False):
        try:
            with (
                whole_file(target) as temporary,
                filesystem.open_input_stream(inner) as source,
                temporary.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, 2**20)
            return
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename != str(target):
                raise
            if not first:
                raise PipelineError(
                    f"{target.parent} has no room for a video ({error.strerror}). Make some, or "
                    "set TMPDIR to a folder on a larger disk."
                ) from error
            _drop(0)


def _drop(limit: int) -> None:
    """Delete copies that nobody holds, the one used longest ago first, down to a limit."""
    copies = []
    for entry in os.scandir(_folder()):
        with contextlib.suppress(FileNotFoundError):
            copies.append((entry.stat(), Path(entry)))
    total = sum(found.st_size for found, _ in copies)
    for found, path in sorted(copies, key=lambda copy: copy[0].st_mtime_ns):
        if total <= limit:
            return
        if path.name.startswith(".") and time.time() - found.st_mtime < _STALE_S:
            continue  # being written
        # BlockingIOError: in use. FileNotFoundError: another process has dropped it.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            total -= found.st_size


@functools.cache
def _folder() -> Path:
    """Where copies lie: a folder that this user owns, and nobody else may look into."""
    folder = Path(tempfile.gettempdir()) / f"idol-videos-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    # Whoever made it may have put files there under the names of our copies.
    own = Path(tempfile.mkdtemp(prefix="idol-videos-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    _log.warning("%s is not a private folder of this user; videos are copied to %s", folder, own)
    return own
