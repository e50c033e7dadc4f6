"""Files written whole or not at all, and JSON read with errors that name the file."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

_LEAST_FREE = 2**16  # bytes; a disk with less has no room for any of our files


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error.

    The bytes are on the disk before the file has its name, so that neither a killed process nor
    a power cut leaves half a file. Until then, and after an error, what was at `path` stays.

    yields: an existing empty file with the same suffix in the folder, which is made if missing
    Raises: OSError: the folder cannot be written to, or the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
        )
    except OSError as error:
        raise _about(target, error) from error
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
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if type(error).__module__ != "builtins":  # a download's, for example: not of this disk
            raise
        # Arrow names no file, and the system the temporary one.
        raise _about(target, error) if error.filename in (None, name) else error from error
    except BaseException as error:
        full = shutil.disk_usage(target.parent).free < _LEAST_FREE
        temporary.unlink(missing_ok=True)
        if not isinstance(error, Exception) or isinstance(error, ValueError):
            raise
        # safetensors and torch have errors of their own; the former says the system's number.
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told or full:
            raise _about(target, OSError(int(told[1]) if told else errno.ENOSPC, "")) from error
        raise


def _about(target: Path, error: OSError) -> OSError:
    """The same error, about the file that the caller named."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno or errno.EIO, reason, str(target))


def write_whole(path: str | Path, data: bytes) -> None:
    """Write these bytes as a file that appears whole or not at all; errors as of `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def check_file(path: Path, what: str) -> None:
    """Refuse a path that is no file; messages call it `what`.

    Raises: FileNotFoundError, IsADirectoryError: nothing, or a folder, is there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the {what} file in it")
    if not path.is_file():
        raise FileNotFoundError(f"the {what} file {path} does not exist")


def load_json(path: Path, what: str) -> Any:
    """Parse a JSON file; `what` is what messages call it.

    Raises:
        FileNotFoundError, IsADirectoryError: as of `check_file`.
        ValueError: it is cut short, no JSON, nested too deeply, or has a number of 4300 digits.
    """
    check_file(path, what)
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"the {what} file {path} is not valid JSON: {error}") from error


def parse_json(data: bytes | str | msgspec.Raw) -> Any:
    """Parse JSON. Raises: ValueError: it is none, nested too deeply, or has too long a number."""
    collecting = gc.isenabled()
    # Parsing makes objects by the million and no circle among them: looking for some takes longer.
    gc.disable()
    try:
        # A third of the time of json, which takes more: NaN, halves of characters, other encodings.
        with contextlib.suppress(ValueError, RecursionError):
            return msgspec.json.decode(data)
        return json.loads(data if isinstance(data, bytes | str) else bytes(data))
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:  # which says how to lift Python's limit
        raise ValueError("a number has thousands of digits") from error
    finally:
        if collecting:
            gc.enable()


def _sync(path: Path) -> None:
    """Have the system write a file's bytes, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
