"""Frames of a video side by side with masks drawn on them, and as text that a page can show."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from idol.images import visualize

Image = NDArray[np.uint8]

_IMAGE_WIDTH: Final = 420  # pixels; wider ones are shrunk, so that a page stays a few megabytes
_JPEG_QUALITY: Final = 85


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """Frames of one video side by side, predictions above the truth.

    predictions:  (H, W, 3) uint8 RGB each, masks and identities already drawn; or none
    truth:        the same frames with the truth drawn; or none
    frame_labels: a word above each column, e.g. "frame 4"; or none
    """

    title: str
    predictions: Sequence[Image] = ()
    truth: Sequence[Image] = ()
    frame_labels: Sequence[str] = ()
    caption: str = ""

    def __post_init__(self) -> None:
        for name in ("truth", "frame_labels"):
            count = len(getattr(self, name))
            if count not in (0, self.columns):
                raise ValueError(
                    f"{name} of strip {self.title!r} must have one entry for each of "
                    f"{self.columns} frames, or none, got {count}"
                )

    @property
    def columns(self) -> int:
        """Frames shown."""
        return len(self.predictions) or len(self.truth)

    def embedded(self) -> dict[str, Any]:
        """What the template strip.html needs: the texts, and every picture as text."""
        rows = [("found", self.predictions), ("truth", self.truth)]
        return {
            "title": self.title,
            "caption": self.caption,
            "labels": list(self.frame_labels),
            "columns": self.columns,
            "rows": [(name, [data_uri(i) for i in images]) for name, images in rows if len(images)],
        }


def draw(
    images: Mapping[int, Image],
    size: tuple[int, int],
    tracks: Sequence[tuple[int, str, Sequence[bytes | None]]],
) -> list[Image]:
    """Each image with the masks that tracks have in its frame.

    images: frame of the video -> (H, W, 3) uint8 RGB
    size:   (H, W)
    tracks: (identity, text, RLE counts of every frame of the video)
    """
    from idol.masks import rle  # with torch, which scoring does not need

    pictures = []
    for frame, image in images.items():
        here = [
            (identity, text, counts)
            for identity, text, segmentations in tracks
            if (counts := segmentations[frame]) is not None
        ]
        masks = rle.decode_masks([counts for _, _, counts in here], size)
        identities, texts = [n for n, _, _ in here], [text for _, text, _ in here]
        pictures.append(visualize.overlay(image, masks, identities, texts))
    return pictures


def evenly(length: int, count: int) -> list[int]:
    """Up to `count` different places of a sequence, from the first to the last."""
    places: list[int] = np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
    return sorted(set(places))


def data_uri(image: Image) -> str:
    """A picture as text that an <img> can show. Raises: ValueError: not (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"a picture of a strip must be (H, W, 3) uint8 RGB, got {image.dtype}{image.shape}"
        )
    height, width = image.shape[:2]
    if width > _IMAGE_WIDTH:
        size = (_IMAGE_WIDTH, max(1, round(height * _IMAGE_WIDTH / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
