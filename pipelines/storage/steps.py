"""Folders of the steps of an unfinished training: each is complete when its last file is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.storage.paths import AnyPath, remove_tree, whole_file

_STEP = "step-"


def folder(out: AnyPath, step: int) -> AnyPath:
    """Where the files of a step lie."""
    return out / f"{_STEP}{step:08d}"


def step_of(path: AnyPath) -> int:
    """The step of such a folder."""
    return int(path.name.removeprefix(_STEP))


def complete(out: AnyPath, last: str) -> list[AnyPath]:
    """The folders that have the file that is written last, by ascending step."""
    return [path for path in _all(out) if (path / last).exists()]


def commit(out: AnyPath, step: int, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Write the files of a step in this order, then delete the folders of all other steps.

    A folder in object storage cannot be renamed at once, so what counts is its last file.

    files: name -> what writes it to a local path
    """
    place = folder(out, step)
    *_, last = files
    (place / last).unlink(missing_ok=True)
    for name, write in files.items():
        with whole_file(place / name) as temporary:
            write(temporary)
    clear(out, keep=place)


def clear(out: AnyPath, keep: AnyPath | None = None) -> None:
    """Delete the folders of steps, complete or not."""
    for path in _all(out):
        if path != keep:
            remove_tree(path)


def _all(out: AnyPath) -> list[AnyPath]:
    return sorted(out.glob(f"{_STEP}*"), key=step_of)
