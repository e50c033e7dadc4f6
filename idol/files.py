"""Files that appear whole or not at all: the only writer of results, tables and weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error.

    The bytes are on the disk before the file has its name, so that neither a killed process nor
    a power cut leaves half a file. Until then, and after an error, what was at `path` stays.

    path:   of the finished file; its folder is made if it is missing
    yields: an existing empty file in the same folder, with the same suffix
    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; results are as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, data: bytes) -> None:
    """Write these bytes as a file that appears whole or not at all; errors as of `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def _sync(path: Path) -> None:
    """Have the system write a file's bytes, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
