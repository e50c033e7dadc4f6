"""DAVIS and YouTube-VOS: Annotations/VIDEO/00000.png beside JPEGImages/VIDEO/00000.jpg.

A folder of a resolution may stand between, as in Annotations/480p/VIDEO. A PNG holds numbers of
objects: indices of its palette, grey levels, or colours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from idol.files import load_json
from pipelines.formats import id_maps, media
from pipelines.formats.labels import OBJECT, Builder, Labels, Track

MASKS, IMAGES = "Annotations", "JPEGImages"

_RESOLUTION = re.compile(r"[0-9]+p|Full-Resolution")


def read(path: Path, frames: Path | None = None) -> Labels:
    """Read all videos below a folder, or below its Annotations.

    frames: folder that holds the videos' images or films by the same names; default: JPEGImages
            beside Annotations
    Raises: ValueError, FileNotFoundError: there are no masks, or no frames to any of them.
    """
    masks = path / MASKS if (path / MASKS).is_dir() else path
    images, top = frames, masks.parent
    if MASKS in masks.parts:
        place = len(masks.parts) - masks.parts[::-1].index(MASKS) - 1
        top = Path(*masks.parts[:place])
        images = images or top.joinpath(IMAGES, *masks.parts[place + 1 :])
    if images is None or not images.is_dir():
        raise FileNotFoundError(f"there is no {IMAGES} beside {masks}; name the frames: --frames")
    folders = media.folders_of_png(masks)
    firsts = {folder.relative_to(masks).parts[:1] for folder in folders}
    sizes = sorted(first[0] for first in firsts if first and _RESOLUTION.fullmatch(first[0]))
    if len(sizes) > 1:
        raise ValueError(
            f"{masks} holds the same videos in {' and '.join(sizes)}; read one: {masks / sizes[0]}"
        )
    if not folders:
        raise ValueError(f"there are no PNG masks in {masks}")
    categories = _categories(top)
    made = Builder(str(path), frames)
    known, parents = {Path(os.path.abspath(masks))}, set[Path]()
    for folder in folders:
        inside = folder.relative_to(masks)
        name = Path(*(part for part in inside.parts if part not in sizes)).as_posix()
        parts = range(len(inside.parts))
        places = [Path(os.path.abspath(images.joinpath(*inside.parts[n:]))) for n in parts]
        known.update(places)
        with made.video(name):
            found = media.find(places)
            if found is None:
                raise ValueError(f"there is no folder of images or film {images / inside}")
            parents.add(found.path.parent)
            _add(made, name, id_maps.read(folder, found), found, categories)
    for folder in _unmasked(parents, known):
        kind = "folders of frames without masks, left out"
        made.notes.add(kind, os.path.relpath(folder, images))
    return made.labels()


def _unmasked(parents: Iterable[Path], known: Iterable[Path]) -> list[Path]:
    """Folders that are neither frames of masks nor hold any, in order.

    parents: what holds the frames of the videos; known: where frames of masks were looked for
    """
    taken = {above for place in known for above in (place, *place.parents)}
    beside = {folder for parent in parents for folder in parent.iterdir() if folder.is_dir()}
    return sorted(beside - taken)


def _add(
    made: Builder,
    name: str,
    maps: id_maps.IdMaps,
    found: media.Frames,
    categories: Mapping[str, Any] | None,
) -> None:
    """One video; categories: meta.json's videos, None without meta.json."""
    objects = dict(maps.objects)
    if maps.white in objects and len(objects) > 1:
        void = objects.pop(maps.white)
        made.notes.add("masks with void (white among other objects), left out", name, len(void))
    tracks = []
    for value, masks in sorted(objects.items()):
        tracks.append(Track(_category(categories, name, value), masks))
    if maps.coloured:
        made.notes.add("videos with masks in colours, each colour taken as one object", name)
    if missing := len(found) - len(maps.positions):
        made.notes.add("frames without a mask file, left out of their video", name, missing)
    if categories is None:
        made.notes.add(f"objects without a category, named {OBJECT!r}", name, len(tracks))
    made.add(name, maps.size, [found.references[p] for p in maps.positions], tracks)


def _categories(top: Path) -> Mapping[str, Any] | None:
    """What YouTube-VOS's meta.json says: video -> objects -> number -> category."""
    path = top / "meta.json"
    if not path.exists():
        return None
    content = load_json(path, "categories")
    if not isinstance(content, dict) or not isinstance(content.get("videos"), dict):
        raise ValueError(f"{path} has no object 'videos', as that of YouTube-VOS has")
    videos: Mapping[str, Any] = content["videos"]
    return videos


def _category(categories: Mapping[str, Any] | None, name: str, value: int) -> str:
    if categories is None:
        return OBJECT
    try:
        category = categories[name]["objects"][str(value)]["category"]
    except (KeyError, TypeError):
        category = None
    if not isinstance(category, str):
        raise ValueError(f"meta.json says no category of object {value}, which has a mask")
    return category
