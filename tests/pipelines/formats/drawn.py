"""Small sets drawn in the formats that are read, and what was read in one comparable form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idol.masks import rle
from idol.ytvis import annotations

SIZE = (24, 36)

Objects = dict[str, list[tuple[str, list[bytes | None]]]]
"""Name of the video -> (category, a mask or None per frame) of its objects, sorted."""


def box(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = SIZE) -> NDArray[Any]:
    """A (H, W) bool mask of a rectangle."""
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def counts(mask: NDArray[Any]) -> bytes:
    (text,) = rle.encode_masks(mask[None])
    return text


def images(folder: Path, names: Iterable[str], size: tuple[int, int] = SIZE) -> None:
    """Noise as image files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        assert cv2.imwrite(str(folder / name), rng.integers(0, 255, (*size, 3), dtype=np.uint8))


def film(path: Path, length: int, size: tuple[int, int] = SIZE) -> None:
    """A film whose frame t is of brightness 20 * t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix.lower() == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), code, 24.0, size[::-1])
    for t in range(length):
        writer.write(np.full((*size, 3), 20 * t % 256, np.uint8))
    writer.release()


def png(path: Path, ids: NDArray[Any], mode: str = "P") -> None:
    """Numbers of objects as a PNG: P (palette), L (8 bits), I;16 (16 bits), RGB, 1 (one bit)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "RGB":  # numbers are red, green, blue
        image = Image.fromarray(
            np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=2).astype(np.uint8)
        )
    elif mode == "I;16":
        image = Image.fromarray(ids.astype(np.uint16))
    else:
        image = Image.fromarray(ids.astype(np.uint8))
        if mode == "P":  # all entries alike: who reads colours finds one object
            image.putpalette([200, 10, 10] * 256)
        if mode == "1":
            image = Image.fromarray(ids > 0)
    image.save(path)


def objects(content: Mapping[str, Any]) -> Objects:
    """What YouTube-VIS JSON holds, by the names of videos and categories."""
    found = annotations.parse(content, "read")
    assert not found.rejects, found.rejects
    result: Objects = {}
    for video in found.videos.values():
        rows = zip(video.instances, video.areas.tolist(), strict=True)
        name = video.name or (video.file_names or ("",))[0].partition("/")[0]
        result[name] = sorted(
            (
                (
                    found.categories[one.category_id],
                    [
                        m["counts"] if m and a else None
                        for m, a in zip(one.masks, areas, strict=True)
                    ],
                )
                for one, areas in rows
            ),
            key=str,
        )
    return result


def file_names(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name of the video -> its frames."""
    return {video["name"]: list(video["file_names"]) for video in content["videos"]}
