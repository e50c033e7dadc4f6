"""A set of videos as YouTube-VIS or CocoVID JSON, as MOTS, or as palette PNG for each frame."""

from __future__ import annotations

import itertools
import json
import posixpath
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idol.masks import rle
from idol.ytvis.repairs import Repairs
from idol.ytvis.videos import Instance, Rle, Video
from pipelines.formats import media, mots
from pipelines.formats.joining import Joined
from pipelines.formats.mask_folders import MASKS
from pipelines.sources import frames as frame_files
from pipelines.storage.paths import AnyPath, send_folder, whole_file

INFO = {"description": "written by python -m jobs.convert"}
"""Begins every JSON file, so that an earlier one is known."""

_MAX_OBJECTS = 254  # of a palette: 0 is the background, 255 void
_Ids = NDArray[np.int32]


def write(joined: Joined, out: AnyPath, to: str) -> Repairs:
    """Write the set to a file or new folder, whole or not at all.

    to:      one of WRITERS
    returns: what the form cannot hold: how often, and where first
    Raises: ValueError, OSError: the form cannot hold the set, or out cannot be written.
    """
    lost = Repairs()
    if to in _JSON:
        with whole_file(out) as temporary, temporary.open("w", encoding="ascii") as file:
            file.writelines(_encoded({"info": INFO, **_JSON[to](joined)}))
    else:
        with _whole_folder(out) as folder:
            _FOLDERS[to](joined, folder, lost)
    return lost


def _encoded(content: Mapping[str, Any]) -> Iterator[str]:
    """An object as json.dumps writes it, of iterators one item at a time."""
    for n, (key, value) in enumerate(content.items()):
        yield f"{', ' if n else '{'}{json.dumps(key)}: "
        if isinstance(value, Iterator):
            items = (f"{', ' if i else ''}{json.dumps(item)}" for i, item in enumerate(value))
            yield from itertools.chain("[", items, "]")
        else:
            yield json.dumps(value)
    yield "}\n"


def _ytvis(joined: Joined) -> dict[str, Any]:
    def annotations() -> Iterator[dict[str, Any]]:
        for video in joined.videos:
            for row, one in enumerate(video.instances):
                masks = _visible(video, row)
                written = {
                    **_fields(joined, video, one),
                    **_sizes(video),
                    "length": video.length,
                    "segmentations": masks,
                    "bboxes": [mask and _box(mask) for mask in masks],
                    "areas": [m and a for a, m in zip(_areas(video, row), masks, strict=True)],
                }
                yield written | ({"occlusion": one.occlusion} if one.occlusion else {})

    videos = (
        {
            "id": video.video_id,
            "name": video.name,
            "file_names": video.file_names,
            **_sizes(video),
            "length": video.length,
        }
        for video in joined.videos
    )
    return _labelled(joined, {"videos": videos}, annotations())


def _cocovid(joined: Joined) -> dict[str, Any]:
    def images() -> Iterator[dict[str, Any]]:
        number = itertools.count(1)
        for video in joined.videos:
            for t, name in enumerate(video.file_names or ()):
                place = {"video_id": video.video_id, "frame_id": t, "file_name": name}
                yield {"id": next(number), **place, **_sizes(video)}

    def annotations() -> Iterator[dict[str, Any]]:
        number, first = itertools.count(1), 1
        for video in joined.videos:
            for row, one in enumerate(video.instances):
                areas = _areas(video, row)
                for t, mask in enumerate(_visible(video, row)):
                    if mask is not None:
                        yield {
                            **_fields(joined, video, one),
                            "id": next(number),
                            "image_id": first + t,
                            "instance_id": one.instance_id,
                            "segmentation": mask,
                            "bbox": _box(mask),
                            "area": areas[t],
                        }
            first += len(video.file_names or ())

    videos = ({"id": v.video_id, "name": v.name, **_sizes(v)} for v in joined.videos)
    return _labelled(joined, {"videos": videos, "images": images()}, annotations())


def _sizes(video: Video) -> dict[str, int]:
    return {"width": video.size[1], "height": video.size[0]}


def _labelled(
    joined: Joined, content: dict[str, Any], annotations: Iterator[Any]
) -> dict[str, Any]:
    categories = [{"id": i, "name": name} for i, name in joined.categories.items()]
    content |= {"categories": categories} if categories else {}
    return content | ({"annotations": annotations} if joined.labelled else {})


def _fields(joined: Joined, video: Video, one: Instance) -> dict[str, Any]:
    scored = {"score": joined.scores[one.instance_id]} if joined.scores else {}
    ids = {"id": one.instance_id, "video_id": video.video_id, "category_id": one.category_id}
    return {**ids, "iscrowd": int(one.crowd), **scored}


def _visible(video: Video, row: int) -> list[dict[str, Any] | None]:
    """An instance's masks as JSON holds them, None also where they cover nothing."""
    masks = zip(video.instances[row].masks, video.areas[row].tolist(), strict=True)
    return [
        {**m, "counts": m["counts"].decode("ascii")} if m and area else None for m, area in masks
    ]


def _areas(video: Video, row: int) -> list[float]:
    """(T,) pixels of an instance: as its source states them, by which it is scored, or measured."""
    stated = video.instances[row].stated_areas
    areas: list[float] = (video.areas[row] if stated is None else stated).tolist()
    return areas


def _box(mask: Rle) -> list[float]:
    from pycocotools import mask as coco_mask

    box: list[float] = coco_mask.toBbox(mask).tolist()
    return box


def _mots(joined: Joined, out: Path, lost: Repairs) -> None:
    """instances/SEQ/000000.png, instances_txt/SEQ.txt, labels.txt."""
    classes = _classes(joined)
    for video, name in _named(joined, lost):
        numbers: dict[int, int] = {}
        counted: Counter[int] = Counter()
        for row, one in enumerate(video.instances):
            label = classes[one.category_id]
            counted[label] += 1
            numbers[row + 1] = label * mots.PER_CLASS + counted[label]
            if counted[label] >= mots.PER_CLASS or numbers[row + 1] >= 2**16:
                raise ValueError(
                    f"video {name} has more classes or objects than MOTS can number "
                    f"({joined.categories[one.category_id]}); write --to cocovid"
                )
        values = np.array([0, *numbers.values()], np.uint16)
        frames = _frame_numbers(video)
        if frames not in (list(range(video.length)), list(range(1, video.length + 1))):
            lost.add(
                "videos with frame numbers that leave gaps or begin above 1, which TrackEval "
                "takes for frames without objects",
                name,
            )
        lines = []
        for t, ids in _painted(joined, video, name, lost):
            _save(Image.fromarray(values[ids]), out / "instances" / name / f"{frames[t]:06d}.png")
            there = np.unique(ids[ids > 0]).tolist()
            masks = rle.encode_masks(np.stack([ids == n for n in there])) if there else []
            height, width = video.size
            lines += [
                f"{frames[t]} {numbers[n]} {numbers[n] // mots.PER_CLASS} {height} {width} "
                f"{mask.decode('ascii')}\n"
                for n, mask in zip(there, masks, strict=True)
            ]
        file = out / "instances_txt" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="ascii")
    names = {classes[i]: name for i, name in joined.categories.items()} | {mots.IGNORE: "ignore"}
    text = "".join(f"{names.get(n, '')}\n" for n in range(1, max(names) + 1))
    (out / mots.NAMES_FILE).write_text(text, encoding="utf-8")


def _classes(joined: Joined) -> dict[int, int]:
    """category_id -> class of MOTS; cars and pedestrians have their numbers there."""
    known = {name: number for number, name in mots.NAMES.items()}
    classes = {i: known[name] for i, name in joined.categories.items() if name in known}
    taken = {mots.IGNORE, *classes.values()}
    free = (n for n in range(1, len(joined.categories) + 3) if n not in taken)
    return {i: classes[i] if i in classes else next(free) for i in joined.categories}


def _palette_png(joined: Joined, out: Path, lost: Repairs) -> None:
    """Annotations/VIDEO/00000.png and meta.json, as YouTube-VOS has them."""
    # DAVIS's colours: bits 0, 3, 6 of a number make the first bits of red, 1, 4, 7 of green, ...
    bits = np.arange(256)[:, None, None] >> (np.arange(3)[:, None] + np.array([0, 3, 6])) & 1
    palette = (bits << np.array([7, 6, 5])).sum(axis=2).astype(np.uint8).tobytes()
    meta: dict[str, Any] = {}
    for video, name in _named(joined, lost):
        if len(video.instances) > _MAX_OBJECTS:
            raise ValueError(
                f"video {name} has {len(video.instances)} objects, a palette at most "
                f"{_MAX_OBJECTS}. Write --to mots or cocovid, or leave results out by --min-score"
            )
        stems = _stems(video)
        for t, ids in _painted(joined, video, name, lost):
            image = Image.fromarray(ids.astype(np.uint8))
            image.putpalette(palette)
            _save(image, out / MASKS / name / f"{stems[t]}.png")
        meta[name] = {
            "objects": {
                str(row + 1): {
                    "category": joined.categories[one.category_id],
                    "frames": [stems[t] for t in np.flatnonzero(video.areas[row]).tolist()],
                }
                for row, one in enumerate(video.instances)
            }
        }
    (out / "meta.json").write_text(json.dumps({"videos": meta}) + "\n")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _painted(joined: Joined, video: Video, name: str, lost: Repairs) -> Iterator[tuple[int, _Ids]]:
    """Frame by frame (index, (H, W) row + 1 of the instance at each pixel, 0 where there is none).

    Where masks overlap the higher score wins, without scores the first in the file.
    """
    rows = [row for row, one in enumerate(video.instances) if not one.crowd]
    if crowds := len(video.instances) - len(rows):
        lost.add("crowd regions, left out", name, crowds)
    rows.sort(key=lambda row: -joined.scores.get(video.instances[row].instance_id, 0.0))
    kept = np.zeros(len(video.instances), bool)
    for t in range(video.length):
        ids = np.zeros(video.size, np.int32)
        shown = [row for row in reversed(rows) if video.areas[row, t]]
        for row in shown:
            mask = video.instances[row].masks[t]
            assert mask is not None
            ids[rle.decode_masks([mask["counts"]], video.size)[0] > 0] = row + 1
        if hidden := int(video.areas[shown, t].sum()) - int(np.count_nonzero(ids)):
            kind = "pixels where masks overlap, given to the higher score alone"
            lost.add(kind, f"{name}, frame {t}", hidden)
        kept[np.unique(ids[ids > 0]) - 1] = True
        yield t, ids
    if hidden := len(rows) - int(kept.sum()):
        lost.add("objects that others cover wholly, lost", name, hidden)


def _named(joined: Joined, lost: Repairs) -> Iterator[tuple[Video, str]]:
    """Every video with the folder or film of its frames, by which it is found again."""
    names = {}
    for video in joined.videos:
        paths = [frame_files.split(name) for name in video.file_names or ()]
        places = {
            posixpath.splitext(path)[0] if number is not None else posixpath.dirname(path)
            for path, number in paths
        }
        names[video.video_id] = places.pop() if len(places) == 1 else ""
    times = Counter(names.values())
    for video in joined.videos:
        name = names[video.video_id]
        if not name or times[name] > 1:
            name = f"video_{video.video_id}"
            lost.add("videos without a folder of their own, named by their id", name)
        yield video, name


def _stems(video: Video) -> list[str]:
    """What the files of the frames are called; by position where names repeat."""
    paths = [frame_files.split(name) for name in video.file_names or ()]
    stems = [
        posixpath.splitext(posixpath.basename(path))[0] if number is None else f"{number:05d}"
        for path, number in paths
    ]
    return stems if len(set(stems)) == len(stems) else [f"{t:05d}" for t in range(video.length)]


def _frame_numbers(video: Video) -> list[int]:
    """The numbers in those names; positions where some have none, or the same."""
    numbers = [n for stem in _stems(video) if (n := media.number_of(stem)) is not None]
    distinct = len(set(numbers)) == video.length
    return numbers if distinct else list(range(video.length))


@contextmanager
def _whole_folder(path: AnyPath) -> Iterator[Path]:
    """A folder that gets its name when the block ends without an error."""
    if path.exists():
        raise FileExistsError(f"{path} exists; write into a new folder, or remove it yourself")
    beside = path.parent if isinstance(path, Path) else None
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{path.name}.") as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        yield folder
        if isinstance(path, Path):
            folder.rename(path)
        else:
            send_folder(folder, path)


_JSON: Mapping[str, Callable[[Joined], dict[str, Any]]] = {"ytvis": _ytvis, "cocovid": _cocovid}
_FOLDERS: Mapping[str, Callable[[Joined, Path, Repairs], None]] = {
    "mots": _mots,
    "png": _palette_png,
}
WRITERS = (*_JSON, *_FOLDERS)
"""Forms that can be written."""
