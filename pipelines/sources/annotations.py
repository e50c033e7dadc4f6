"""Annotation JSON → VideoRecord (door 0): facts only, no pixels.

`idol.ytvis.annotations` reads the file. Here frames are added: a video whose frame paths leave the
frames root, or whose frames do not exist, is rejected with the reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idol import files
from idol.ytvis import annotations as annotation_files
from idol.ytvis import truth as truth_file
from idol.ytvis.annotations import InvalidAnnotations
from idol.ytvis.truth import Truth
from idol.ytvis.videos import Annotations, Reject, Video
from pipelines.errors import DatasetError, VideoError
from pipelines.sources import frames as frame_files
from pipelines.storage import manifest


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One true object of a video.

    instance_id:   the annotation's id
    category_id:   the dataset's number
    iscrowd:       a group that is not told apart
    segmentations: compressed COCO RLE counts at the video's size, or None where the object is
                   not visible, for every frame
    """

    instance_id: int
    category_id: int
    iscrowd: bool
    segmentations: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: facts only, no pixels.

    video_id:  the dataset's id
    size:      (height, width) of every frame, in pixels
    frames:    frame references in time order, resolved against the frames root
    instances: in the order of the file; empty where the dataset carries no truth
    name:      what the dataset calls the video, or the folder of its first frame
    """

    video_id: int
    size: tuple[int, int]
    frames: tuple[str, ...]
    instances: tuple[InstanceRecord, ...]
    name: str = ""

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects: the dataset's number and its name."""

    category_id: int
    name: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """What annotations.read found.

    videos:     the usable videos, by ascending video_id
    categories: by ascending category_id; position is the label
    rejects:    {video_id, path, reason} of everything left out
    input_hash: names the content of the annotations and the selection made from them
    sources:    the annotation files
    annotated:  videos whose annotations can be read, with usable frames or without
    """

    videos: tuple[VideoRecord, ...]
    categories: tuple[Category, ...]
    rejects: tuple[dict[str, Any], ...]
    input_hash: str
    sources: tuple[str, ...] = ()
    annotated: tuple[Video, ...] = ()

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The dataset's category_id of each label."""
        return tuple(category.category_id for category in self.categories)

    @property
    def category_names(self) -> tuple[str, ...]:
        """The name of each label."""
        return tuple(category.name for category in self.categories)

    @property
    def labels(self) -> dict[int, int]:
        """category_id → label 0..K-1."""
        return {category.category_id: i for i, category in enumerate(self.categories)}

    @property
    def rejected_videos(self) -> set[int]:
        """video_ids that were left out."""
        kept = {video.video_id for video in self.videos}
        return {int(row["video_id"]) for row in self.rejects} - kept

    def truth(self) -> Truth | None:
        """The truth of these videos, for scoring; None where they have none.

        Videos without readable frames are in it, and will be scored as missed. Videos whose
        annotations cannot be read are left out, with a warning.
        """
        if not any(video.instances for video in self.videos):
            return None
        readable = {video.video_id for video in self.annotated}
        rejects = [Reject(**row) for row in self.rejects if row["video_id"] not in readable]
        names = dict(zip(self.category_ids, self.category_names, strict=True))
        return truth_file.of_videos(names, self.annotated, rejects)


def read(
    json_path: str | Path,
    frames_root: str | Path | None = None,
    *,
    video_ids: Collection[int] | None = None,
    stride: int = 1,
) -> Dataset:
    """Read a YouTube-VIS, OVIS or COCO annotation file; an image of COCO is a video of one frame.

    json_path:   local path or URL
    frames_root: folder the frame references are relative to; default: JPEGImages beside the
                 file where that exists, else the file's own folder
    video_ids:   keep only these videos; all must exist (a held-out split is chosen by video_id)
    stride:      keep frames 0, stride, 2·stride, ...: faster motion, from the same annotations;
                 objects seen in none of them go
    returns:     Dataset; videos that cannot be used are in its rejects, with the reason
    Raises:
        DatasetError: the file as a whole is no annotation file.
        ValueError: a video id that is not there, or a stride below 1.
    """
    source = str(json_path)
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    data, found = _parsed(source)
    wanted = None if video_ids is None else set(video_ids)
    annotated = [video.strided(stride) for video in _chosen(found, wanted)]
    root = str(frames_root) if frames_root is not None else _default_root(source)
    if not frame_files.is_remote(root):
        # Workers read the frames, and have a working directory of their own.
        root = str(Path(root).resolve())
    listing = frame_files.Listing()
    videos = []
    rejects = [row for row in found.rejects if wanted is None or row.video_id in wanted]
    for video in annotated:
        try:
            videos.append(_record(video, source, root, listing))
        except VideoError as error:
            rejects.append(Reject(error.video_id, error.path, error.reason))
    digest = hashlib.sha256(data).hexdigest()
    if wanted is not None or stride != 1:
        chosen = None if wanted is None else sorted(wanted)
        digest = manifest.hash_value([digest, chosen, stride])
    return Dataset(
        videos=tuple(videos),
        categories=tuple(Category(*item) for item in found.categories.items()),
        rejects=tuple(row._asdict() for row in rejects),
        input_hash=digest,
        sources=(source,),
        annotated=tuple(annotated),
    )


def _parsed(source: str) -> tuple[bytes, Annotations]:
    """A file's bytes and what they hold. Raises: DatasetError: it is no annotation file."""
    todo = "Give the path of a YouTube-VIS JSON file."
    try:
        data = frame_files.read_bytes(source)
    except (OSError, ValueError) as error:
        raise DatasetError(source, f"cannot be read ({error}).", todo) from error
    try:
        content = files.parse_json(data)
    except ValueError as error:
        raise DatasetError(source, f"is not JSON ({error}).", todo) from error
    try:
        return data, annotation_files.parse(content, source)
    except InvalidAnnotations as error:
        raise DatasetError(source, error.reason, annotation_files.EXPECTED) from error


def combine(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one.

    Categories are united by category_id, which must mean the same name everywhere. The first
    data set keeps its video_ids and instance_ids; where a later one shares an id with what came
    before, all its ids are raised by the largest id so far, so that the result depends on the
    order given and on nothing else.

    Raises: ValueError: one category_id has two names, or nothing is given.
    """
    if not datasets:
        raise ValueError("combine needs at least one data set, got none")
    if len(datasets) == 1:
        return datasets[0]
    names: dict[int, str] = {}
    videos: list[VideoRecord] = []
    annotated: list[Video] = []
    rejects: list[dict[str, Any]] = []
    for dataset in datasets:
        for category in dataset.categories:
            if names.setdefault(category.category_id, category.name) != category.name:
                raise ValueError(
                    f"category {category.category_id} is {names[category.category_id]!r} and "
                    f"{category.name!r} in {', '.join(dataset.sources)}. Data sets that are "
                    "combined must number their categories alike: renumber one of them."
                )
        raised = _offset(
            [v.video_id for v in annotated] + [r["video_id"] for r in rejects],
            [v.video_id for v in dataset.annotated] + [r["video_id"] for r in dataset.rejects],
        )
        raised_instances = _offset(
            [i.instance_id for v in annotated for i in v.instances],
            [i.instance_id for v in dataset.annotated for i in v.instances],
        )
        videos += [_raised(video, raised, raised_instances) for video in dataset.videos]
        annotated += [_raised(video, raised, raised_instances) for video in dataset.annotated]
        rejects += [{**row, "video_id": row["video_id"] + raised} for row in dataset.rejects]
    return Dataset(
        videos=tuple(sorted(videos, key=lambda v: v.video_id)),
        categories=tuple(Category(i, names[i]) for i in sorted(names)),
        rejects=tuple(rejects),
        input_hash=manifest.hash_value([dataset.input_hash for dataset in datasets]),
        sources=tuple(source for dataset in datasets for source in dataset.sources),
        annotated=tuple(annotated),
    )


def _offset(taken: Iterable[int], new: Iterable[int]) -> int:
    used = set(taken)
    return max(used) if used & set(new) else 0


def _raised(video: Any, raised: int, raised_instances: int) -> Any:
    """A VideoRecord or Video with its ids raised."""
    instances = tuple(
        dataclasses.replace(i, instance_id=i.instance_id + raised_instances)
        for i in video.instances
    )
    return dataclasses.replace(video, video_id=video.video_id + raised, instances=instances)


def _chosen(found: Annotations, wanted: set[int] | None) -> list[Video]:
    """The videos of these ids, or all."""
    if wanted is None:
        return list(found.videos.values())
    unknown = wanted - found.videos.keys() - {row.video_id for row in found.rejects}
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the {len(wanted)} chosen video ids are not in "
            f"{found.origin}, for example {min(unknown)}"
        )
    return [video for video_id, video in found.videos.items() if video_id in wanted]


def _default_root(source: str) -> str:
    if frame_files.is_remote(source):
        parent = source.rpartition("/")[0]
        inside = f"{parent}/JPEGImages"
        return inside if frame_files.is_directory(inside) else parent
    folder = Path(source).parent
    return str(folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder)


def _record(video: Video, source: str, root: str, listing: frame_files.Listing) -> VideoRecord:
    """The record of a video. Raises: VideoError: its frames cannot be used."""
    names = video.file_names
    if names is None:
        raise VideoError(video.video_id, source, "file_names must be a list of paths")
    references = []
    for name in names:
        reference = _inside(name)
        if reference is None:
            raise VideoError(
                video.video_id,
                name,
                "the frame path leaves the frames root: paths must be relative to it, "
                "without '..' above it",
            )
        references.append(frame_files.join(root, reference))
    for reference in dict.fromkeys(frame_files.split(r)[0] for r in references):
        if not listing.exists(reference):
            raise VideoError(video.video_id, reference, "the frame does not exist")
    return VideoRecord(
        video_id=video.video_id,
        size=video.size,
        frames=tuple(references),
        instances=tuple(
            InstanceRecord(
                instance_id=instance.instance_id,
                category_id=instance.category_id,
                iscrowd=instance.crowd,
                segmentations=tuple(
                    mask["counts"] if mask is not None and area else None
                    for mask, area in zip(instance.masks, areas, strict=True)
                ),
            )
            for instance, areas in zip(video.instances, video.areas.tolist(), strict=True)
        ),
        name=video.name or names[0].partition("/")[0],
    )


def _inside(name: str) -> str | None:
    """A frame path normalised, or None where it is empty, absolute or leaves the root."""
    if not name or "\0" in name or frame_files.is_remote(name) or re.match("[A-Za-z]:/", name):
        return None
    normal = posixpath.normpath(name)
    if normal.startswith("/") or normal in ("..", ".") or normal.startswith("../"):
        return None
    return normal
