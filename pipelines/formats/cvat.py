"""CVAT for video 1.1: an XML of tracks with polygons and masks, beside a film or images.

Frame numbers are those of the film; a task may begin later (start_frame) and use each n-th frame
(frame_filter, step=n).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

import numpy as np

from idol.ytvis.repairs import Repairs
from pipelines.formats import media
from pipelines.formats.labels import Builder, Labels, Track, encoded

NAME = "annotations.xml"
"""What CVAT calls its file."""


def read(path: Path, frames: Path | None = None) -> Labels:
    """Read an XML, or a folder that holds annotations.xml.

    frames: the film, the folder of images, or a folder with either; default: beside the XML, called
            as CVAT exports them (images/), as the task's source, or as the XML
    Raises: ValueError, FileNotFoundError: it is no such XML, or it has no frames.
    """
    path = path / NAME if path.is_dir() else path
    root = _parse(path)
    about = next((e for tag in ("task", "job") for e in root.findall(f"meta/{tag}")), None)
    if root.tag != "annotations" or about is None or root.find("image") is not None:
        raise ValueError(
            f"{path} is no 'CVAT for video 1.1' of one task. Export each task in that format; what "
            "was exported as 'CVAT for images' or as a whole project has no tracks to read"
        )
    source = about.findtext("source") or root.findtext("meta/source") or ""
    found = _frames(path, frames, Path(source).stem)
    name = path.stem if path.name != NAME else path.resolve().parent.name
    made = Builder(str(path))
    with made.video(name):
        numbers = _numbers(about, found)
        size = _size(about, found)
        index = {number: t for t, number in enumerate(numbers)}
        made_of = (_track(e, size, index, made.notes, name) for e in root.findall("track"))
        tracks = [track for track in made_of if track.masks]
        stated = {label.findtext("name") for label in about.iter("label")}
        for unknown in sorted({track.category for track in tracks} - stated):
            made.notes.add(
                "labels of tracks that the task does not list, taken as they are", unknown
            )
        made.add(name, size, [found.references[p] for p in numbers.values()], tracks)
    return made.labels()


def _parse(path: Path) -> Element:
    """The tree of an XML file. Raises: ValueError: it is none, or declares entities."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: Any) -> None:
        # Entities can make gigabytes of a few bytes, or read other files; CVAT writes none.
        raise ValueError(f"{path} has a DOCTYPE, which CVAT does not write; it is not read")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except (expat.ExpatError, LookupError) as error:  # the latter of an unknown encoding
        raise ValueError(f"{path} is not XML ({error})") from error


def _frames(path: Path, frames: Path | None, source: str) -> media.Frames:
    if frames is not None and frames.is_file():
        return media.Frames(frames)
    folder = frames or path.parent
    places = [folder / "images", *(folder / name for name in (source, path.stem) if name)]
    found = media.find([folder, *places] if frames else places)
    if found is None:
        raise FileNotFoundError(
            f"{path}: its film or images were not found as {', '.join(map(str, places))}; name the "
            "film, or the folder of images: --frames"
        )
    return found


def _numbers(about: Element, found: media.Frames) -> dict[int, int]:
    """Frame number of the XML -> position among the frames that are there."""
    there = len(found)
    start, length = _whole(about, "start_frame", 0), _whole(about, "size", there)
    step = re.search(r"step=([1-9][0-9]*)", about.findtext("frame_filter") or "")
    each = int(step[1]) if step else 1
    numbers = range(start, start + length * each, each)
    # Exported images are those of the task alone; a film, or its images, are all there are.
    alone = there == length and not found.is_film
    if not length or (not alone and numbers[-1] >= there):
        raise ValueError(
            f"the task has {length} frames, the last number {max(numbers, default=0)}, but there "
            f"are {there} images or film frames. Is it the film that was labelled?"
        )
    return {n: i if alone else n for i, n in enumerate(numbers)}


def _size(about: Element, found: media.Frames) -> tuple[int, int]:
    size = found.size(range(len(found)))
    stated = about.find("original_size")
    if stated is not None:
        told = _whole(stated, "height", 0), _whole(stated, "width", 0)
        if told != size:
            raise ValueError(
                f"the XML says {told[0]} x {told[1]} (height x width), the frames in {found.path} "
                f"are {size[0]} x {size[1]}"
            )
    return size


def _whole(element: Element, name: str, default: int) -> int:
    text = (element.findtext(name) or "").strip() or str(default)
    if not text.isdecimal():
        raise ValueError(f"<{name}> must be a whole number, got {text[:40]!r}")
    return int(text)


def _track(
    element: Element, size: tuple[int, int], index: dict[int, int], notes: Repairs, name: str
) -> Track:
    """A track with the masks it has; index: number of a frame -> its position in the video."""
    me = f"track {element.get('id')}"
    label = element.get("label")
    if not label:
        raise ValueError(f"{me} has no label")
    masks: dict[int, Any] = {}
    for shape in element:
        if shape.get("outside") == "1":
            continue
        if shape.tag not in ("polygon", "mask"):
            kind = f"shapes that are a {shape.tag}, left out (that is no mask)"
            notes.add(kind, f"{name}, {me}")
            continue
        at = shape.get("frame", "")
        if not at.isdecimal() or int(at) not in index:
            of = f"of {len(index)} frames from {next(iter(index))} on"
            raise ValueError(f"{me} has a shape on frame {at!r}, {of}")
        t = index[int(at)]
        try:
            mask = _polygon(shape) if shape.tag == "polygon" else _mask(shape, size)
        except (KeyError, ValueError) as error:
            lacks = f"the {shape.tag} has no attribute " if isinstance(error, KeyError) else ""
            raise ValueError(f"{me}, frame {at}: {lacks}{error}") from error
        if t in masks and not (isinstance(masks[t], list) and isinstance(mask, list)):
            raise ValueError(f"{me} has two masks on frame {at}")
        masks[t] = masks[t] + mask if t in masks else mask
    return Track(label, masks)


def _polygon(shape: Element) -> list[list[float]]:
    if not (stated := shape.get("points")):
        raise ValueError("the polygon has no points")
    points = (point.split(",") for point in stated.split(";"))
    return [[float(value) for point in points for value in point]]


def _mask(shape: Element, size: tuple[int, int]) -> dict[str, Any]:
    """Runs go row by row through the mask's own box, background first."""
    left, top, width, height = (int(shape.attrib[k]) for k in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.attrib["rle"].split(",")]
    if min(left, top, *runs) < 0 or left + width > size[1] or top + height > size[0]:
        raise ValueError(f"the mask at {left}, {top} of {width} x {height} leaves the frame")
    if sum(runs) != width * height:
        raise ValueError(f"runs add up to {sum(runs)} pixels, {width} x {height} are needed")
    full = np.zeros(size, np.uint8)
    values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    full[top : top + height, left : left + width] = values
    return encoded(full)
