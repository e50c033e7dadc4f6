"""The rows of a followed source in the forms of other tools: COCO, MOT, MOTS, CVAT.

One track is one object in all of them, under the number that the film shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np

from idol.arrays import Ints
from idol.files import whole_file
from idol.masks import rle
from pipelines.formats import mots
from pipelines.stream import places
from pipelines.stream.rows import Row, StoredRows

_STRAIGHTER = 0.75  # pixels that an outline may differ: a slope is a line then, not its steps
Export = Literal["coco", "mot", "mots", "cvat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What exports say of a source.

    name:    of the video
    numbers: of the frames that were used, in the source
    size:    (height, width)
    images:  of a folder, in order, after which frames are called; of a film they are video.mp4#12
    classes: every category that the network knows, in its order
    """

    name: str
    numbers: range
    size: tuple[int, int]
    images: tuple[Path, ...]
    classes: tuple[str, ...]


def write(out: Path, about: About, exports: tuple[Export, ...]) -> list[Path]:
    """Write these forms of what out/ROWS holds, each whole or not at all; returns their paths."""
    if not exports:
        return []
    rows = StoredRows(out / places.ROWS)
    written = []
    for export in dict.fromkeys(exports):
        name, form = _FORMS[export]
        with (
            whole_file(out / name) as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as file,
        ):
            file.writelines(form(rows, about))
        written.append(out / name)
    if "mots" in exports:
        numbers = _mots_classes(rows)
        text = "".join(f"{numbers.get(n, '')}\n" for n in range(1, max(numbers, default=0) + 1))
        (out / places.MOTS_LABELS).write_text(text, encoding="utf-8")
    return written


def _coco(rows: StoredRows, about: About) -> Iterator[str]:
    """CocoVID: an annotation for each mask, with track_id; COCO's own tools read it too."""
    height, width = about.size
    size = {"width": width, "height": height}
    names = about.classes if set(rows.categories) <= set(about.classes) else tuple(rows.categories)
    ids = {name: place + 1 for place, name in enumerate(names)}
    head: dict[str, Any] = {
        "info": {"description": "written by python -m jobs.track"},
        "videos": [{"id": 1, "name": about.name, **size}],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }
    yield json.dumps(head)[:-1] + ', "images": ['
    for place, number in enumerate(about.numbers):
        name = about.images[number].name if about.images else f"{about.name}#{number}"
        image = {"id": place + 1, "video_id": 1, "frame_id": place, "file_name": name, **size}
        yield (",\n" if place else "\n") + json.dumps(image)
    yield '\n], "annotations": ['
    written = 0
    for frame in rows.frames():
        for row in frame:
            written += 1
            annotation = {
                "id": written,
                "image_id": about.numbers.index(row["frame"]) + 1,
                "video_id": 1,
                "track_id": row["track_id"],
                "category_id": ids[row["category"]],
                "score": row["score"],
                "iscrowd": 0,
                "bbox": _left_top(row),
                "area": row["area"],
                "segmentation": row["segmentation"],
            }
            yield (",\n" if written > 1 else "\n") + json.dumps(annotation)
    yield "\n]}\n"


def _mot(rows: StoredRows, about: About) -> Iterator[str]:
    """MOTChallenge: frame (from 1), identity, left, top, width, height, score, no place in 3D."""
    for frame in rows.frames():
        for row in frame:
            box = ",".join(f"{value:g}" for value in _left_top(row))
            yield f"{row['frame'] + 1},{row['track_id']},{box},{row['score']:g},-1,-1,-1\n"


def _mots(rows: StoredRows, about: About) -> Iterator[str]:
    """MOTS: frame (from 1), identity, class, height, width, mask. No pixel has two objects: where
    masks overlap, the higher score has it."""
    height, width = about.size
    numbers = {name: number for number, name in _mots_classes(rows).items()}
    for frame in rows.frames():
        taken = np.zeros(about.size, np.bool_)
        for row in frame:
            counts = row["segmentation"]["counts"]
            mask = rle.decode_masks([counts], about.size)[0].astype(np.bool_)
            overlapped = (mask & taken).any()
            mask &= ~taken
            taken |= mask
            if not mask.any():
                continue
            if overlapped:
                counts = rle.encode_masks(mask[None])[0].decode("ascii")
            number = numbers[row["category"]]
            yield f"{row['frame'] + 1} {row['track_id']} {number} {height} {width} {counts}\n"


def _mots_classes(rows: StoredRows) -> dict[int, str]:
    """Number of each category: cars and pedestrians have theirs."""
    known = {name: number for number, name in mots.NAMES.items()}
    free = (n for n in range(1, len(rows.categories) + 4) if n not in (*mots.NAMES, mots.IGNORE))
    return {known[n] if n in known else next(free): n for n in rows.categories}


def _cvat(rows: StoredRows, about: About) -> Iterator[str]:
    """CVAT for video 1.1: a polygon track for each object, for CVAT does not track masks. The
    polygon is the outline of the largest piece; holes and other pieces are left out."""
    height, width = about.size
    numbers = about.numbers
    labels = "".join(
        f"<label><name>{escape(name)}</name><type>polygon</type><attributes/></label>"
        for name in rows.categories
    )
    yield (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        "<meta><task>"
        f"<name>{escape(about.name)}</name><size>{len(numbers)}</size><mode>interpolation</mode>"
        f"<start_frame>{numbers.start}</start_frame>"
        f"<stop_frame>{numbers[-1] if numbers else 0}</stop_frame>"
        f"<frame_filter>{f'step={numbers.step}' if numbers.step > 1 else ''}</frame_filter>"
        f"<labels>{labels}</labels><original_size><width>{width}</width><height>{height}</height>"
        f"</original_size><source>{escape(about.name)}</source></task></meta>\n"
    )
    for track_id, track in rows.tracks.items():
        yield f'<track id="{track_id}" label={quoteattr(track.category)} source="auto">\n'
        last: tuple[int, str] | None = None
        for row in rows.of_track(track_id):
            points = _outline(row, about.size)
            if not points:
                continue
            if last is not None and row["frame"] > last[0] + numbers.step:
                yield _polygon(last[0] + numbers.step, last[1], outside=True)
            yield _polygon(row["frame"], points)
            last = row["frame"], points
        if last is not None and last[0] != numbers[-1]:
            yield _polygon(last[0] + numbers.step, last[1], outside=True)
        yield "</track>\n"
    yield "</annotations>\n"


def _polygon(frame: int, points: str, *, outside: bool = False) -> str:
    return (
        f'<polygon frame="{frame}" outside="{int(outside)}" occluded="0" keyframe="1" '
        f'points="{points}" z_order="0"/>\n'
    )


def _outline(row: Row, size: tuple[int, int]) -> str:
    """The outline of a mask's largest piece as CVAT writes points; "" where it has no pixel."""
    mask = rle.decode_masks([row["segmentation"]["counts"]], size)[0]
    # A contour goes through centres of pixels, a polygon of CVAT along their edges. At twice the
    # size an edge is what lies between an odd and an even number, whatever the side of the mask.
    contours, _ = cv2.findContours(
        mask.repeat(2, 0).repeat(2, 1), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    if not contours:
        return ""
    edges = (max(contours, key=cv2.contourArea) + 1) // 2
    corners: Ints = cv2.approxPolyDP(edges, _STRAIGHTER, closed=True)[:, 0]
    if len(corners) < 3:  # a sliver
        corners = edges[:, 0]
    return ";".join(f"{x:.1f},{y:.1f}" for x, y in corners.tolist())


def _left_top(row: Row) -> list[float]:
    """A row's box as left, top, width, height."""
    x0, y0, x1, y1 = row["box"]
    return [x0, y0, x1 - x0, y1 - y0]


_FORMS: Mapping[str, tuple[str, Callable[[StoredRows, About], Iterator[str]]]] = {
    "coco": (places.COCO, _coco),
    "mot": (places.MOT, _mot),
    "mots": (places.MOTS, _mots),
    "cvat": (places.CVAT, _cvat),
}
