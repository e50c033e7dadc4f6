"""SA-V: ID_manual.json or ID_auto.json beside ID.mp4, masks on every fourth frame."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from idol.files import load_json
from pipelines.formats import media
from pipelines.formats.labels import OBJECT, Builder, Labels, Track

KINDS = ("_manual", "_auto")

_STEP = 4  # film frames of 24 a second to an annotated one


def read(path: Path, frames: Path | None = None) -> Labels:
    """Read one JSON, or all in a folder; of a video with both, that of people.

    frames: folder of the films; default: that of the JSON
    Raises: ValueError, FileNotFoundError: no video can be read.
    """
    made = Builder(str(path), frames)
    for file in [path] if path.is_file() else _chosen(sorted(path.glob("*_*.json")), made):
        with made.video(file.stem):
            _add(made, file, frames or file.parent)
    return made.labels()


def _chosen(files: Iterable[Path], made: Builder) -> list[Path]:
    chosen: dict[str, Path] = {}
    for file in reversed(list(files)):  # manual before auto
        if not file.stem.endswith(KINDS):
            continue
        name = file.stem.rpartition("_")[0]
        if name in chosen:
            made.notes.add("automatic masks beside those of people, left out", file.name)
        chosen.setdefault(name, file)
    return sorted(chosen.values())


def _add(made: Builder, file: Path, folder: Path) -> None:
    content = load_json(file, "SA-V")
    masklet: Any = content.get("masklet") if isinstance(content, dict) else None
    if not isinstance(masklet, list) or not all(isinstance(row, list) for row in masklet):
        raise ValueError(f"{file} has no 'masklet', a list of masks for each annotated frame")
    name = str(content.get("video_id") or file.stem.rpartition("_")[0])
    found = media.find([folder / name])
    if found is None:
        raise ValueError(f"there is no film {folder / name}.mp4; name its folder: --frames")
    if not masklet or (len(masklet) - 1) * _STEP >= len(found):
        raise ValueError(
            f"{file} has masks for {len(masklet)} frames, each {_STEP}th of the film, but "
            f"{found.path} has {len(found)}"
        )
    numbers: dict[int, dict[int, Any]] = {}
    for t, row in enumerate(masklet):
        for number, mask in enumerate(row):
            numbers.setdefault(number, {})[t] = mask
    made.notes.add(f"objects without a category, named {OBJECT!r}", name, len(numbers))
    tracks = [Track(OBJECT, masks) for _, masks in sorted(numbers.items())]
    made.add(name, found.size([0]), found.references[::_STEP][: len(masklet)], tracks)
