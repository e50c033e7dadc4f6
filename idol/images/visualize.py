"""Masks, boxes and identities drawn on frames."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from idol.arrays import Bools, Floats

Image = NDArray[np.uint8]

_GOLDEN_RATIO: Final = 0.6180339887498949
_Plate = tuple[int, int, int, int]  # left, top, right, bottom of a text's background
FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
COLORS: Final = 24
"""Colours that identities have: as many as can be told apart at all."""


def identity_color(track_id: int) -> tuple[int, int, int]:
    """The colour of an identity, RGB 0..255, one of 24: the same in every frame, video and run."""
    if track_id < 0:
        return 150, 150, 150  # no identity
    # Steps by the golden ratio make consecutive hues differ; about ten hues can be told apart.
    place = track_id % COLORS
    hue = (0.58 + place * _GOLDEN_RATIO) % 1.0
    lightness = (0.55, 0.68, 0.42)[place // 8]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    frame: Image,
    masks: ArrayLike,
    track_ids: Sequence[int],
    labels: Sequence[str] | None = None,
    *,
    boxes: ArrayLike | None = None,
    colors: Sequence[tuple[int, int, int]] | None = None,
    trails: Sequence[Sequence[tuple[float, float]]] = (),
    opacity: float = 0.5,
    zoom: int = 1,
) -> Image:
    """Draw N instances on a copy of frame, each in the colour of its identity.

    frame:     (H, W, 3) uint8, RGB
    masks:     (N, H, W) bool or 0/1; nothing and no label is drawn for an all-zero mask
    track_ids: (N,)      identities; -1 is grey
    labels:    (N,)      text beside each mask, e.g. "person 3 0.87"; None: no text
    boxes:     (N, 4)    xyxy, pixels; None: no boxes
    colors:    N         RGB 0..255; None: those of `identity_color`
    trails:    N         lists of points (x, y) in pixels, joined by lines; (): none
    opacity:   of the masks' fill, 0 (outlines only) to 1
    zoom:      >= 1, enlarges the picture, so that texts do not hide a small frame
    returns:   (zoom * H, zoom * W, 3) uint8, RGB
    Raises: ValueError: shapes or counts disagree, or opacity or zoom is out of range.
    """
    frame = np.asarray(frame)
    filled, corners = _checked(frame, masks, len(track_ids), labels, boxes)
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity must lie in [0, 1], got {opacity}")
    if zoom < 1:
        raise ValueError(f"zoom must be >= 1, got {zoom}")
    image = np.array(frame)
    if zoom > 1:
        image = cv2.resize(frame, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        filled = filled.repeat(zoom, axis=1).repeat(zoom, axis=2)
    line = line_width(image)
    if colors is None:
        colors = [identity_color(track_id) for track_id in track_ids]
    _draw_masks(image, filled, colors, opacity)
    for box, color in zip(corners * zoom, colors, strict=boxes is not None):
        x0, y0, x1, y1 = (int(v) for v in np.rint(box))
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), color, line)
    for trail, color in zip(trails, colors, strict=bool(trails)):
        points = np.rint(zoom * np.array(trail, np.float64).reshape(-1, 2)).astype(np.int32)
        cv2.polylines(image, [points], False, color, line, cv2.LINE_AA)
    # The texts last: nothing is drawn over them.
    taken: list[_Plate] = []
    for mask, color, text in zip(filled, colors, labels or (), strict=bool(labels)):
        rows, columns = _place(mask)
        if rows.stop:
            taken.append(_write(image, text, columns.start, rows.start, color, taken))
    return image


def _draw_masks(
    image: Image, masks: Bools, colors: Sequence[tuple[int, int, int]], opacity: float
) -> None:
    """Draw N masks (N, H, W) on an image (H, W, 3): all fills, then all outlines."""
    # In the masks' own boxes: most of a large frame is none of theirs.
    places = [_place(mask) for mask in masks]
    # All fills before all outlines and texts: no later mask covers a label.
    for mask, (rows, columns), color in zip(masks, places, colors, strict=True):
        part, inside = image[rows, columns], mask[rows, columns]
        mixed = part[inside] * (1 - opacity) + np.array(color, np.float32) * opacity
        part[inside] = np.rint(mixed).astype(np.uint8)
    for mask, (rows, columns), color in zip(masks, places, colors, strict=True):
        inside = np.ascontiguousarray(mask[rows, columns]).view(np.uint8)
        contours, _ = cv2.findContours(
            inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(columns.start, rows.start)
        )
        cv2.drawContours(image, contours, -1, color, line_width(image))


def line_width(image: Image) -> int:
    """Pixels of a line that is seen on a picture of this size."""
    return max(1, round(int(min(image.shape[:2])) / 240))


def text_scale(image: Image) -> float:
    """OpenCV's font scale that is readable on a picture of this size."""
    return max(0.3, int(min(image.shape[:2])) / 900)


def printable(text: str) -> str:
    """The text in ASCII: OpenCV's font has no more, and builds differ in what they draw instead."""
    return text.encode("ascii", "replace").decode("ascii")


def write_text(image: Image, text: str, place: tuple[int, int], scale: float) -> None:
    """Write light text into an image (H, W, 3), its baseline beginning at place (x, y)."""
    cv2.putText(image, printable(text), place, FONT, scale, (235, 235, 235), 1, cv2.LINE_AA)


def _place(mask: Bools) -> tuple[slice, slice]:
    """Rows and columns of a mask's tight box; both empty, from 0 to 0, where it is."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return slice(y, y + height), slice(x, x + width)


def _checked(
    frame: Image,
    masks: ArrayLike,
    count: int,
    labels: Sequence[str] | None,
    boxes: ArrayLike | None,
) -> tuple[Bools, Floats]:
    """The arguments of `overlay`: masks (N, H, W), boxes (N, 4) or (0, 4)."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"frame must be (H, W, 3) uint8 RGB, got {frame.dtype}{frame.shape}")
    filled = np.asarray(masks)
    if filled.size == 0 and count == 0:
        filled = np.zeros((0, *frame.shape[:2]), np.bool_)
    if filled.shape != (count, *frame.shape[:2]):
        raise ValueError(
            f"masks must have shape {(count, *frame.shape[:2])} for {count} track ids on a frame "
            f"of {frame.shape[:2]}, got {filled.shape}"
        )
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must have one text for each of {count} ids, got {len(labels)}")
    corners = np.asarray(() if boxes is None else boxes, np.float64).reshape(-1, 4)
    if boxes is not None and len(corners) != count:
        raise ValueError(f"boxes must have one row for each of {count} ids, got {len(corners)}")
    return filled.astype(np.bool_), corners


def caption(name: str, track_id: int, score: float | None = None) -> str:
    """The label of a detection: category, identity, score, e.g. "person 3 0.87"."""
    return f"{name} {track_id}" if score is None else f"{name} {track_id} {score:.2f}"


def _write(
    image: Image, text: str, x: int, y: int, color: tuple[int, int, int], taken: list[_Plate]
) -> _Plate:
    """Write text above (x, y) on a plate in the image, below plates taken if there is room."""
    height, width = image.shape[:2]
    scale, text = text_scale(image), printable(text)
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, 1)
    plate_width, plate_height = text_width + 4, text_height + below + 2
    x = max(0, min(x, width - plate_width))
    y = first = max(0, min(y - plate_height, height - plate_height))
    while any(
        x < right and left < x + plate_width and y < bottom and top < y + plate_height
        for left, top, right, bottom in taken
    ):
        y += 1
        if y + plate_height > height:
            y = first
            break
    plate = (x, y, x + plate_width, y + plate_height)
    cv2.rectangle(image, plate[:2], (plate[2] - 1, plate[3] - 1), color, cv2.FILLED)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 130 else (255, 255, 255)
    baseline = (x + 2, y + text_height + 1)
    cv2.putText(image, text, baseline, FONT, scale, ink, 1, cv2.LINE_AA)
    return plate
