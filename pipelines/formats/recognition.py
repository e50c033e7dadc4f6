"""Which format lies at a path, and reading it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from idol.addresses import is_remote
from idol.ytvis import lazy_rows
from idol.ytvis.annotations import parse
from idol.ytvis.videos import Reject
from pipelines.errors import DatasetError, PipelineError
from pipelines.formats import cvat, mask_folders, media, mots, sav, unlabelled
from pipelines.formats.labels import Labels
from pipelines.sources import annotations as annotation_files
from pipelines.sources import frames as frame_files
from pipelines.sources.annotations import Dataset
from pipelines.storage import paths
from pipelines.storage.paths import AnyPath, RemotePath

_log = logging.getLogger(__name__)

Reader = Callable[[Path, Path | None], Labels]


def read(path: AnyPath, frames: AnyPath | None = None, format: str = "auto") -> Labels:
    """Read the labels at a path; at an address, or with frames there, JSON alone.

    frames: where its frames lie; default: as its format has it
    format: one of FORMATS, or "auto": the one that it looks like
    Raises: ValueError, PipelineError, OSError: it is none that is known, or cannot be read.
    """
    remote = isinstance(path, RemotePath) or isinstance(frames, RemotePath)
    if remote and format not in ("auto", "json"):
        raise ValueError(f"only JSON goes with an address, not --format {format}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if frames is not None and not frames.exists():
        raise FileNotFoundError(f"the frames {frames} do not exist")
    if isinstance(path, RemotePath) or isinstance(frames, RemotePath):
        return _with_address(path, frames)
    return FORMATS[recognise(path) if format == "auto" else format](path, frames)


def _with_address(path: AnyPath, frames: AnyPath | None) -> Labels:
    """JSON at an address, or with frames there."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, but only JSON goes with an address. Name the JSON file, or copy "
            "labels and frames to a disk."
        )
    with annotation_files.opened(str(path)) as local:
        content = lazy_rows.load_json(local, "annotation")
    return Labels(str(path), content, frames or paths.at(annotation_files.default_root(str(path))))


def dataset(
    path: str | Path,
    frames: str | Path | None = None,
    *,
    video_ids: Collection[int] | None = None,
    stride: int = 1,
) -> Dataset:
    """The videos of labels in any format that is known: what every job reads.

    Arguments, result and errors as of `annotations.read`. Videos that cannot be read from their
    format are among the rejects, with ids after all others; what was changed is logged.
    """
    selected: dict[str, Any] = {"video_ids": video_ids, "stride": stride}
    place = Path(path)
    if is_remote(str(path)) or is_remote(str(frames or "")) or not place.exists():
        return annotation_files.read(path, frames, **selected)
    labels = None
    try:
        kind = recognise(place)
        if kind != "json":
            labels = read(place, Path(frames) if frames else None, kind)
    except DatasetError:
        raise
    except (OSError, PipelineError, ValueError) as error:
        todo = "Formats and options: python -m jobs.convert --help, which writes JSON of them."
        raise DatasetError(str(path), str(error), todo) from error
    if labels is None:
        (file,) = place.glob("*.json") if place.is_dir() else [place]
        return annotation_files.read(file, frames, **selected)
    if labels.notes:
        _log.warning("%s was changed while reading: %s", path, labels.notes)
    with annotation_files.judged(str(path)):
        found = parse(labels.content, str(path))
    ids = itertools.count(1 + max((*found.videos, *(r.video_id for r in found.rejects)), default=0))
    faults = [
        # Of a video of its own the path is its name, and the reason begins with it.
        Reject(next(ids), name, reason.removeprefix(f"{name}: "))
        for name, reason in labels.left_out.items()
    ]
    found = dataclasses.replace(found, rejects=(*found.rejects, *faults))
    digest = hashlib.sha256(kind.encode())
    for name in ("videos", "annotations", "categories"):
        for row in labels.content.get(name, ()):
            digest.update(json.dumps(lazy_rows.whole(row), sort_keys=True).encode())
    return annotation_files.chosen(
        found, digest.hexdigest(), str(path), str(labels.frames), **selected
    )


def recognise(path: Path) -> str:
    """The name of the format. Raises: ValueError: there is none, or more than one."""
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".json" and path.stem.endswith(sav.KINDS):
            return "sav"
        by_suffix = {".json": "json", ".xml": "cvat", ".txt": "mots"}
        found = [by_suffix[suffix]] if suffix in by_suffix else []
        if suffix in frame_files.VIDEO_SUFFIXES:
            found = ["videos"]
    else:
        found = [name for name, looks_so in _FOLDERS.items() if looks_so(path)]
        files = sorted(path.glob("*.json"))
        if not found and len(files) > 1:
            names = ", ".join(file.name for file in files[:5])
            raise ValueError(f"{path} holds {len(files)} JSON files ({names}); name those to read")
        if not found and files:
            found = ["json"]
        if not found and any(file.suffix.lower() in _MEDIA for file in path.rglob("*")):
            found = ["videos"]
    if len(found) == 1:
        return found[0]
    looks = f"looks like {' and '.join(found)}" if found else "is of no format that is known"
    hint = "; unpack it first" if path.suffix.lower() in (".zip", ".tar", ".gz") else ""
    raise ValueError(f"{path} {looks}{hint}. Say which: --format {' | '.join(FORMATS)}")


def _json(path: Path, frames: Path | None) -> Labels:
    """YouTube-VIS, OVIS, CocoVID and COCO: what they hold is read when they are joined."""
    if path.is_dir():
        (path,) = path.glob("*.json")
    content = lazy_rows.load_json(path, "annotation")
    if isinstance(content, dict) and "masklet" in content:
        return sav.read(path, frames)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is no annotation file: its top level is no object")
    root = frames or Path(annotation_files.default_root(str(path)))
    return Labels(str(path), content, Path(os.path.abspath(root)))


FORMATS: Mapping[str, Reader] = {
    "json": _json,
    "masks": mask_folders.read,
    "mots": mots.read,
    "cvat": cvat.read,
    "sav": sav.read,
    "videos": unlabelled.read,
}

_MEDIA = frame_files.VIDEO_SUFFIXES | frame_files.IMAGE_SUFFIXES
_FOLDERS: Mapping[str, Callable[[Path], bool]] = {
    "masks": lambda path: (
        (path / mask_folders.MASKS).is_dir()
        or (mask_folders.MASKS in path.absolute().parts and any(path.rglob(media.PNG)))
    ),
    "mots": lambda path: (
        any((path / name).is_dir() for name in ("instances", "instances_txt"))
        or any(path.glob("*/gt/gt.txt"))
        or any(mots.is_text(file) for file in path.glob("*.txt"))
    ),
    "cvat": lambda path: (path / cvat.NAME).is_file(),
    "sav": lambda path: any(any(path.glob(f"*{kind}.json")) for kind in sav.KINDS),
}
