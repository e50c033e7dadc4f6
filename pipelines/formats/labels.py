"""What every reader gives: YouTube-VIS JSON, the frames' folder, what was changed on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from idol.masks import rle
from idol.spool import Spool
from idol.ytvis import repairs
from idol.ytvis.lazy_rows import Ids, Row
from idol.ytvis.repairs import Repairs
from pipelines.errors import PipelineError, VideoError
from pipelines.sources import frames as frame_files
from pipelines.storage.paths import AnyPath

OBJECT = "object"
"""The category of objects that a format gives no name."""


@dataclass(frozen=True, slots=True)
class Labels:
    """One source.

    content:  YouTube-VIS JSON, its rows as `lazy_rows.Row`s where there can be many; without
              "annotations" where nothing is labelled
    frames:   absolute folder, or address, that its file_names are relative to
    notes:    kind of what was repaired, dropped or merged -> how often, and where first
    left_out: video -> why it cannot be used
    """

    origin: str
    content: Mapping[str, Any]
    frames: AnyPath
    notes: Repairs = field(default_factory=Repairs)
    left_out: dict[str, str] = field(default_factory=dict)


class Track(NamedTuple):
    """One object: its category's name; frame index -> segmentation in any form of COCO."""

    category: str
    masks: dict[int, Any]


class Builder:
    """Collects the videos of one source, in a file."""

    def __init__(self, origin: str, root: Path | None = None, *, labelled: bool = True) -> None:
        """root: folder that frame paths will be relative to; None: the one that holds them all."""
        self.origin, self.labelled = origin, labelled
        self.notes, self.left_out = Repairs(), dict[str, str]()
        self._root = root
        self._videos = Spool[dict[str, Any]]()
        self._annotations = Spool[dict[str, Any]]()
        self._ids: list[Ids] = []  # of the annotations
        self._categories: dict[str, int] = {}

    @contextmanager
    def video(self, name: str) -> Iterator[None]:
        """A block that reads one video: a fault in it leaves this video out, with its reason."""
        try:
            yield
        except VideoError as error:
            self.left_out[name] = f"{error.path}: {error.reason}"
        except (PipelineError, ValueError, OSError) as error:
            self.left_out[name] = str(error)

    def add(
        self,
        name: str,
        size: tuple[int, int],
        references: Sequence[str],
        tracks: Sequence[Track] = (),
    ) -> None:
        """One video: (height, width), and frame references with absolute paths.

        Raises: ValueError: a path is not UTF-8. Replaced, it would be that of no file.
        """
        for path in references:
            if repairs.written(path) != path:
                reason = "is not UTF-8, and neither JSON nor tables can hold it: rename the file"
                raise ValueError(f"the frame path {path!a} {reason}")
        video_id, (height, width) = len(self._videos) + 1, size
        length = len(references)
        sizes = {"height": height, "width": width, "length": length}
        self._videos.append({"id": video_id, "name": name, **sizes, "file_names": references})
        for track in tracks:
            category_id = self._categories.setdefault(track.category, len(self._categories) + 1)
            ids = {
                "id": len(self._annotations) + 1,
                "video_id": video_id,
                "category_id": category_id,
            }
            masks = [track.masks.get(t) for t in range(length)]
            self._annotations.append({**ids, "iscrowd": 0, "segmentations": masks})
            self._ids.append(Ids(**ids))

    def labels(self) -> Labels:
        """All of it. Raises: ValueError: no video can be used, or a frame lies outside the root."""
        if not self._videos:
            first = next((f": {name}: {why}" for name, why in self.left_out.items()), "")
            raise ValueError(f"{self.origin} has no video that can be used{first}")
        places = {self._place(reference) for v in self._videos for reference in v["file_names"]}
        root = Path(os.path.abspath(self._root or os.path.commonpath(places)))
        placed = Spool(_below(root, video) for video in self._videos)
        videos = [Row(Ids(id=n + 1), placed.__getitem__, n) for n in range(len(placed))]
        rows = enumerate(self._ids)
        annotations = [Row(ids, self._annotations.__getitem__, n) for n, ids in rows]
        categories = [{"id": i, "name": name} for name, i in self._categories.items()]
        content: dict[str, Any] = {"videos": videos}
        if self.labelled:
            categories = categories or [{"id": 1, "name": OBJECT}]
            content |= {"categories": categories, "annotations": annotations}
        return Labels(self.origin, content, root, self.notes, self.left_out)

    @staticmethod
    def _place(reference: str) -> str:
        """The folder that holds a film, or the folder of images of one video."""
        path, number = frame_files.split(reference)
        folder = os.path.dirname(path)
        return folder if number is not None else os.path.dirname(folder)


def _below(root: Path, video: dict[str, Any]) -> dict[str, Any]:
    """The row of a video with its frame paths relative to a root. Raises: ValueError."""
    names = [Path(os.path.relpath(r, root)).as_posix() for r in video["file_names"]]
    if any(name.startswith("../") for name in names):
        raise ValueError(f"{video['file_names'][0]} is not in the folder of frames {root}")
    return {**video, "file_names": names}


def encoded(mask: Any) -> dict[str, Any]:
    """A (H, W) mask of bool, or 0 and 1, as JSON holds it."""
    (counts,) = rle.encode_masks(mask[None])
    return {"size": list(mask.shape), "counts": counts.decode("ascii")}
