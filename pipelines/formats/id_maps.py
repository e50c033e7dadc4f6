"""Pictures whose pixels are numbers of objects, read frame by frame as masks of one video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idol.images import live
from pipelines.formats.labels import encoded
from pipelines.formats.media import PNG, Frames, opened


@dataclass(frozen=True, slots=True)
class IdMaps:
    """The pictures of one video.

    positions: (T,) of the frames that have a picture, ascending
    size:      (height, width)
    objects:   pixel value -> index into positions -> mask
    white:     the value of white, which may be void; None: such pictures have none
    coloured:  whether values are colours, red * 65536 + green * 256 + blue
    """

    positions: list[int]
    size: tuple[int, int]
    objects: dict[int, dict[int, Any]]
    white: int | None
    coloured: bool


def read(folder: Path, frames: Frames) -> IdMaps:
    """All PNG files of a folder; a file has the stem or number of its frame.

    Raises: ValueError: a picture cannot be read, has no frame, or another size than its frame.
    """
    files: dict[int, Path] = {}
    for path in sorted(folder.glob(PNG), key=lambda p: live.natural(p.name)):
        position = frames.find(path.stem)
        if position in files:
            raise ValueError(f"{files[position]} and {path} are masks of one frame")
        files[position] = path
    positions = sorted(files)
    size = frames.size(positions)
    objects: dict[int, dict[int, Any]] = {}
    whites: dict[int | None, Path] = {}
    for t, position in enumerate(positions):
        path = files[position]
        ids, white = _read_picture(path)
        if ids.shape != size:
            raise ValueError(
                f"{path} is {ids.shape[0]} x {ids.shape[1]} (height x width), its frame "
                f"{size[0]} x {size[1]}"
            )
        whites.setdefault(white, path)
        for value in np.unique(ids[ids > 0]).tolist():
            objects.setdefault(value, {})[t] = encoded(ids == value)
    if len(whites) > 1:
        paths = " and ".join(map(str, list(whites.values())[:2]))
        raise ValueError(f"{paths} are not of one kind (palette or grey, 16 bits, colours)")
    white = next(iter(whites))
    return IdMaps(positions, size, objects, white, coloured=white == _WHITE)


_WHITE = 0xFFFFFF


def _read_picture(path: Path) -> tuple[NDArray[Any], int | None]:
    """(H, W) numbers of objects, and the number of white."""
    with opened(path) as image:
        image.verify()  # the checksums, which reading passes over
    with opened(path) as image:
        if image.mode in ("P", "L", "1"):  # of a palette the index, whatever its colours are
            pixels = np.array(image, np.int64)
            return pixels, 1 if image.mode == "1" else 255
        if image.mode.startswith("I"):
            return np.array(image, np.int64), None
        colours = np.array(image.convert("RGB"), np.int64)
    return (colours << np.array([16, 8, 0])).sum(axis=2), _WHITE
