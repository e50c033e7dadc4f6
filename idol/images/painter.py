"""The pictures of a film: every identity in its colour, where it has been, and who is seen.

A painter draws one video, frame by frame: it remembers colours and trails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

import cv2
import numpy as np

from idol.arrays import Bools, Ints
from idol.images import visualize
from idol.images.visualize import COLORS, Image, identity_color

Style = Literal["overlay", "blur", "cutout"]
"""overlay: masks, outlines, boxes and captions. blur: the instances made unrecognisable, and
nothing else drawn. cutout: the instances alone, on grey."""

READABLE: Final = 480
"""Smaller pictures are enlarged, for texts have a least size."""
LARGEST: Final = 1920
"""Pixels of the longer side up to which a picture is enlarged."""
_KEPT: Final = 256  # identities whose colours and trails are remembered: no picture shows so many
_RECENT: Final = 100  # frames
_GREY: Final = 114
_LINES: Final = 2  # of the legend

Color = tuple[int, int, int]


class Painter:
    """Draws the frames of one video.

    style:  what is drawn
    trail:  frames that the trail of an instance's centre reaches back; 0: no trails
    legend: a bar below the picture with the time and who is seen, each in its colour
    """

    def __init__(self, style: Style = "overlay", *, trail: int = 20, legend: bool = True) -> None:
        self._style, self._trail, self._legend = style, trail, legend
        self._colors: dict[int, Color] = {}
        self._seen: dict[int, int] = {}
        self._paths: dict[int, deque[tuple[int, tuple[float, float]]]] = {}
        self._frame = 0

    def color(self, track_id: int) -> Color:
        """The colour of an identity in this video: that of its number, or where one that was seen
        in the last frames has that, the next that none has."""
        if track_id not in self._colors:
            near = self._frame - _RECENT
            taken = {self._colors[i] for i, frame in self._seen.items() if frame > near}
            wanted = (identity_color(track_id + shift) for shift in range(COLORS))
            free = next((color for color in wanted if color not in taken), None)
            self._colors[track_id] = free or identity_color(track_id)
        self._seen.pop(track_id, None)
        self._seen[track_id] = self._frame  # the one seen last is last
        for old in list(self._seen)[:-_KEPT]:
            del self._colors[old], self._seen[old]
            self._paths.pop(old, None)
        return self._colors[track_id]

    def paint(
        self,
        frame: Image,
        masks: Bools,
        track_ids: Sequence[int],
        names: Sequence[str],
        scores: Sequence[float],
        title: str = "",
    ) -> Image:
        """The next picture.

        frame:     (H, W, 3) uint8 RGB
        masks:     (n, H, W) bool, in descending score
        track_ids: n identities, of which none comes twice
        names:     n category names
        scores:    n scores
        title:     begins the legend, as the time
        returns:   (zoom * H, zoom * W, 3) uint8 RGB; with a legend, for overlays, some rows more.
                   Pictures of one size come of frames of one size
        """
        self._frame += 1
        if self._style != "overlay":
            return _hidden(frame, masks) if self._style == "blur" else _alone(frame, masks)
        short, long = sorted(frame.shape[:2])
        zoom = max(1, min(round(READABLE / short), LARGEST // long))
        colors = [self.color(track_id) for track_id in track_ids]
        boxes = boxes_of(masks)
        # The most certain last, on top.
        back = slice(None, None, -1)
        texts = map(visualize.caption, names, track_ids, scores)
        image = visualize.overlay(
            frame,
            masks[back],
            list(track_ids)[back],
            list(texts)[back],
            boxes=boxes[back],
            colors=colors[back],
            trails=self._trails(boxes, track_ids)[back],
            zoom=zoom,
        )
        if not self._legend:
            return image
        return np.concatenate([image, self._bar(image, title, track_ids, names, colors)])

    def _trails(self, boxes: Ints, track_ids: Sequence[int]) -> list[list[tuple[float, float]]]:
        """Where the centres of the instances were in the last frames, with this one."""
        found = []
        for box, track_id in zip(boxes.tolist(), track_ids, strict=True):
            path = self._paths.setdefault(track_id, deque())
            if self._trail and box[2] > box[0]:
                path.append((self._frame, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)))
            while path and path[0][0] <= self._frame - self._trail:
                path.popleft()
            found.append([point for _, point in path])
        return found

    def _bar(
        self,
        image: Image,
        title: str,
        track_ids: Sequence[int],
        names: Sequence[str],
        colors: Sequence[Color],
    ) -> Image:
        """The legend, as wide as the picture: the title, then who is seen by ascending identity."""
        width = image.shape[1]
        scale = visualize.text_scale(image)
        (_, height), below = cv2.getTextSize("Ag", visualize.FONT, scale, 1)
        row = height + below + 4
        bar = np.full((_LINES * row + 4, width, 3), 24, np.uint8)
        seen = sorted(zip(track_ids, names, colors, strict=True))
        entries = [(title, None), *((f"{n} {i}", color) for i, n, color in seen)]
        widths = [_width(text, scale) + (row if color else 0) + row // 2 for text, color in entries]
        x, line = row // 4, 0
        for place, ((text, color), wide) in enumerate(zip(entries, widths, strict=True)):
            left = f"+{len(entries) - place}"
            # The last line keeps room to say how many more there are.
            room = width - (_width(left, scale) + row // 4 if line == _LINES - 1 else 0)
            if x + wide > room and x > row // 4:
                if line == _LINES - 1:
                    visualize.write_text(bar, left, (x, 2 + line * row + height), scale)
                    break
                x, line = row // 4, line + 1
            top = 2 + line * row
            if color:
                corner = x + height, top + height
                cv2.rectangle(bar, (x, top), corner, color, cv2.FILLED)
                x, wide = x + row, wide - row
            visualize.write_text(bar, text, (x, top + height), scale)
            x += wide
        return bar


def boxes_of(masks: Bools) -> Ints:
    """(n, 4) int64 xyxy, the tight boxes of masks (n, H, W); zeros where one is empty."""
    boxes = np.zeros((len(masks), 4), np.int64)
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        box[:] = (x, y, x + width, y + height)
    return boxes


def _width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(visualize.printable(text), visualize.FONT, scale, 1)[0][0])


def _hidden(frame: Image, masks: Bools) -> Image:
    """The frame with the instances in squares of at least an eighth of their sides."""
    image = frame.copy()
    for box, mask in zip(boxes_of(masks).tolist(), masks, strict=True):
        x0, y0, x1, y1 = box
        if x1 == x0:
            continue
        part = frame[y0:y1, x0:x1]
        # A blur can be undone in part; means of few large squares cannot.
        small = cv2.resize(part, (min(8, x1 - x0), min(8, y1 - y0)), interpolation=cv2.INTER_AREA)
        coarse = cv2.resize(small, (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)
        inside = mask[y0:y1, x0:x1]
        image[y0:y1, x0:x1][inside] = coarse[inside]
    return image


def _alone(frame: Image, masks: Bools) -> Image:
    """The instances alone, on grey."""
    image = np.full_like(frame, _GREY)
    for mask in masks:
        image[mask] = frame[mask]
    return image
