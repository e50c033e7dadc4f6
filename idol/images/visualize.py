"""Masks, boxes and identities drawn on frames, and frames laid out as one sheet."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]

_GOLDEN_RATIO: Final = 0.6180339887498949
_Plate = tuple[int, int, int, int]  # left, top, right, bottom of a text's background
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX


def identity_color(track_id: int) -> tuple[int, int, int]:
    """The colour of an identity, RGB 0..255: the same in every frame, video and run.

    Hues step by the golden ratio, so any few consecutive ids are far apart on the circle; lightness
    changes every few ids, for no more than about ten hues can be told from one another.
    """
    if track_id < 0:
        return 150, 150, 150  # no identity
    hue = (0.58 + track_id * _GOLDEN_RATIO) % 1.0
    lightness = (0.55, 0.68, 0.42)[track_id // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    frame: Image,
    masks: ArrayLike,
    track_ids: Sequence[int],
    labels: Sequence[str] | None = None,
    *,
    boxes: ArrayLike | None = None,
    opacity: float = 0.5,
    zoom: int = 1,
) -> Image:
    """Draw N instances on a copy of frame, each in the colour of its identity.

    frame:     (H, W, 3) uint8, RGB
    masks:     (N, H, W) bool or 0/1; an all-zero mask draws nothing, its label neither
    track_ids: (N,)      identities; -1 is grey
    labels:    (N,)      text beside each mask, e.g. "person 3 0.87"; None: no text
    boxes:     (N, 4)    xyxy, pixels; None: no boxes
    opacity:   of the masks' fill, 0 (outlines only) to 1
    zoom:      >= 1, enlarges the picture, so that texts on small frames leave something to see
    returns:   (zoom * H, zoom * W, 3) uint8, RGB
    Errors: ValueError where shapes or counts disagree.
    """
    frame = np.asarray(frame)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"frame must be (H, W, 3) uint8 RGB, got {frame.dtype}{frame.shape}")
    filled = np.asarray(masks)
    count = len(track_ids)
    if filled.size == 0 and count == 0:
        filled = np.zeros((0, *frame.shape[:2]), np.bool_)
    if filled.shape != (count, *frame.shape[:2]):
        raise ValueError(
            f"masks must have shape {(count, *frame.shape[:2])} for {count} track ids on a frame "
            f"of {frame.shape[:2]}, got {filled.shape}"
        )
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must have one text for each of {count} ids, got {len(labels)}")
    corners = None if boxes is None else np.asarray(boxes, np.float64).reshape(-1, 4)
    if corners is not None and len(corners) != count:
        raise ValueError(f"boxes must have one row for each of {count} ids, got {len(corners)}")
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity must lie in [0, 1], got {opacity}")

    if zoom < 1:
        raise ValueError(f"zoom must be >= 1, got {zoom}")
    image = np.array(frame)
    if zoom > 1:
        image = cv2.resize(frame, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        filled = filled.repeat(zoom, axis=1).repeat(zoom, axis=2)
        corners = None if corners is None else corners * zoom
    line = max(1, round(min(image.shape[:2]) / 240))
    visible = filled.astype(bool)
    # All fills before all outlines and texts: no label is painted over by a later mask.
    for mask, track_id in zip(visible, track_ids, strict=True):
        color = np.array(identity_color(track_id), np.float32)
        image[mask] = np.rint(image[mask] * (1 - opacity) + color * opacity).astype(np.uint8)
    for mask, track_id in zip(visible, track_ids, strict=True):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, contours, -1, identity_color(track_id), line)
    if corners is not None:
        for box, track_id in zip(corners, track_ids, strict=True):
            x0, y0, x1, y1 = (int(v) for v in np.rint(box))
            cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), identity_color(track_id), line)
    if labels is not None:
        taken: list[_Plate] = []
        for mask, track_id, text in zip(visible, track_ids, labels, strict=True):
            if mask.any():
                left = int(np.flatnonzero(mask.any(axis=0))[0])
                top = int(np.flatnonzero(mask.any(axis=1))[0])
                taken.append(_write(image, text, left, top, identity_color(track_id), taken))
    return image


def caption(name: str, track_id: int, score: float | None = None) -> str:
    """The label of a detection: category, identity, score, e.g. "person 3 0.87"."""
    return f"{name} {track_id}" if score is None else f"{name} {track_id} {score:.2f}"


def contact_sheet(
    images: Sequence[Image], columns: int, *, gap: int = 4, background: int = 255
) -> Image:
    """Lay images out row by row on one sheet; smaller ones stand at the top left of their cell.

    images:  at least one (h, w, 3) uint8 RGB, sizes may differ
    columns: >= 1, images in a row
    gap:     pixels between cells
    returns: (H, W, 3) uint8, RGB
    """
    if not images:
        raise ValueError("contact_sheet needs at least one image, got none")
    if columns < 1:
        raise ValueError(f"columns must be >= 1, got {columns}")
    height, width = (max(image.shape[side] for image in images) for side in (0, 1))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    sheet = np.full(size, background, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        y, x = row * (height + gap), column * (width + gap)
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def _write(
    image: Image, text: str, x: int, y: int, color: tuple[int, int, int], taken: list[_Plate]
) -> _Plate:
    """Write text above (x, y) on a plate of this colour, inside the image and, where there is
    room below, clear of the plates already taken; returns the plate."""
    height, width = image.shape[:2]
    scale = max(0.3, min(height, width) / 900)
    # OpenCV's font is ASCII only and differs between builds in what it draws for the rest.
    text = text.encode("ascii", "replace").decode("ascii")
    (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, 1)
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
    cv2.putText(image, text, baseline, _FONT, scale, ink, 1, cv2.LINE_AA)
    return plate
