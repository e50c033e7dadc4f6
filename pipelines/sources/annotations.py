"""YouTube-VIS, OVIS and COCO JSON → VideoRecord: facts only, no pixels.

The JSON is checked here and nowhere else. What is wrong with one video rejects that video with
its reason; what makes the whole file meaningless is a DatasetError.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idol.masks import rle
from pipelines.errors import DatasetError, VideoError
from pipelines.sources import frames as frame_files
from pipelines.storage import manifest

# What a category id or a mask side can be in the tables and in pycocotools without overflow.
_MAX_INT = 2**53
_MAX_SIDE = 1 << 15
# Polygons may leave the frame, but not by more than this many of its longer sides.
_REACH = 16


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
    """One video (door 0): facts only, no pixels.

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
    """

    videos: tuple[VideoRecord, ...]
    categories: tuple[Category, ...]
    rejects: tuple[dict[str, Any], ...]
    input_hash: str
    sources: tuple[str, ...] = field(default=())

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
    video_ids:   keep only these videos (see Dataset and `select`)
    stride:      keep every stride-th frame: faster motion, from the same annotations
    returns:     Dataset; videos that cannot be used are in its rejects, with the reason
    Errors:      DatasetError where the file as a whole is no annotation file: not JSON, not
                 YouTube-VIS, an id used twice, no videos
    """
    source = str(json_path)
    try:
        data = frame_files.read_bytes(source)
    except (OSError, ValueError) as error:
        raise DatasetError(
            source, f"cannot be read ({error}).", "Give the path of a YouTube-VIS JSON file."
        ) from error
    try:
        content = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(
            source, f"is not JSON ({error}).", "Give the path of a YouTube-VIS JSON file."
        ) from error
    root = str(frames_root) if frames_root is not None else _default_root(source)
    if not frame_files.is_remote(root):
        # Workers read the frames, and have a working directory of their own.
        root = str(Path(root).resolve())
    dataset = _parse(content, source, root, hashlib.sha256(data).hexdigest())
    if video_ids is not None or stride != 1:
        dataset = select(dataset, video_ids=video_ids, stride=stride)
    return dataset


def select(
    dataset: Dataset, *, video_ids: Collection[int] | None = None, stride: int = 1
) -> Dataset:
    """Some videos, or every stride-th frame of all of them.

    video_ids: all must exist (a held-out split is chosen by video_id)
    stride:    frames 0, stride, 2·stride, ... remain; objects seen in none of them go
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    videos = dataset.videos
    rejects = dataset.rejects
    if video_ids is not None:
        wanted = set(video_ids)
        unknown = wanted - {v.video_id for v in videos} - dataset.rejected_videos
        if unknown:
            raise ValueError(
                f"{len(unknown)} of the {len(wanted)} chosen video ids are not in "
                f"{', '.join(dataset.sources)}, for example {min(unknown)}"
            )
        videos = tuple(v for v in videos if v.video_id in wanted)
        rejects = tuple(r for r in rejects if r["video_id"] in wanted)
    if stride > 1:
        videos = tuple(_stride(video, stride) for video in videos)
    chosen = sorted(set(video_ids)) if video_ids is not None else None
    return dataclasses.replace(
        dataset,
        videos=videos,
        rejects=rejects,
        input_hash=manifest.hash_value([dataset.input_hash, chosen, stride]),
    )


def combine(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one.

    Categories are united by category_id, which must mean the same name everywhere. The first
    data set keeps its video_ids and instance_ids; where a later one shares an id with what came
    before, all its ids are raised by the largest id so far, so that the result depends on the
    order given and on nothing else.
    Errors: ValueError where one category_id has two names, or nothing is given
    """
    if not datasets:
        raise ValueError("combine needs at least one data set, got none")
    if len(datasets) == 1:
        return datasets[0]
    names: dict[int, str] = {}
    videos: list[VideoRecord] = []
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
            [v.video_id for v in videos] + [r["video_id"] for r in rejects],
            [v.video_id for v in dataset.videos] + [r["video_id"] for r in dataset.rejects],
        )
        raised_instances = _offset(
            [i.instance_id for v in videos for i in v.instances],
            [i.instance_id for v in dataset.videos for i in v.instances],
        )
        videos += [
            dataclasses.replace(
                video,
                video_id=video.video_id + raised,
                instances=tuple(
                    dataclasses.replace(i, instance_id=i.instance_id + raised_instances)
                    for i in video.instances
                ),
            )
            for video in dataset.videos
        ]
        rejects += [{**row, "video_id": row["video_id"] + raised} for row in dataset.rejects]
    return Dataset(
        videos=tuple(sorted(videos, key=lambda v: v.video_id)),
        categories=tuple(Category(i, names[i]) for i in sorted(names)),
        rejects=tuple(rejects),
        input_hash=manifest.hash_value([dataset.input_hash for dataset in datasets]),
        sources=tuple(source for dataset in datasets for source in dataset.sources),
    )


def _offset(taken: Iterable[int], new: Iterable[int]) -> int:
    used = set(taken)
    return max(used) if used & set(new) else 0


def _stride(video: VideoRecord, stride: int) -> VideoRecord:
    instances = []
    for instance in video.instances:
        kept = instance.segmentations[::stride]
        if any(kept):
            instances.append(dataclasses.replace(instance, segmentations=kept))
    return dataclasses.replace(video, frames=video.frames[::stride], instances=tuple(instances))


def _default_root(source: str) -> str:
    if frame_files.is_remote(source):
        parent = source.rpartition("/")[0]
        inside = f"{parent}/JPEGImages"
        return inside if frame_files.is_directory(inside) else parent
    folder = Path(source).parent
    return str(folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder)


def _parse(content: Any, source: str, root: str, digest: str) -> Dataset:
    todo = (
        "Expected YouTube-VIS JSON: {videos: [{id, width, height, file_names}], categories: "
        "[{id, name}], annotations: [{id, video_id, category_id, segmentations}]}, or COCO's."
    )

    def refuse(reason: str) -> DatasetError:
        return DatasetError(source, reason, todo)

    if not isinstance(content, dict):
        raise refuse(f"is not YouTube-VIS: the top level is a {type(content).__name__}.")
    if "videos" not in content and "images" in content:
        content = _images_as_videos(content, refuse)
    for key in ("videos", "categories"):
        if not isinstance(content.get(key), list):
            raise refuse(f"is not YouTube-VIS: it has no list {key!r}.")
    if not content["videos"]:
        raise refuse("has no videos.")
    if not content["categories"]:
        raise refuse("has no categories.")
    annotations = content.get("annotations")
    if annotations is None:  # the validation and test sets of the benchmarks
        annotations = []
    if not isinstance(annotations, list):
        raise refuse("is not YouTube-VIS: 'annotations' is not a list.")
    for key, items in (
        ("videos", content["videos"]),
        ("categories", content["categories"]),
        ("annotations", annotations),
    ):
        _check_ids(key, items, refuse)

    categories = []
    for item in sorted(content["categories"], key=lambda c: int(c["id"])):
        if not isinstance(item.get("name"), str):
            raise refuse(f"category {item['id']} has no name.")
        categories.append(Category(item["id"], item["name"]))

    known = {item["id"] for item in content["videos"]}
    of_video: dict[int, list[dict[str, Any]]] = {}
    rejects: list[dict[str, Any]] = []
    for item in annotations:
        video_id = item.get("video_id")
        if not _is_int(video_id):
            raise refuse(
                f"is not YouTube-VIS: annotation {item['id']} has no whole number 'video_id'."
            )
        if video_id in known:
            of_video.setdefault(video_id, []).append(item)
        else:
            reason = f"annotation {item['id']} belongs to video {video_id}, which does not exist"
            rejects.append({"video_id": video_id, "path": source, "reason": reason})

    listing = frame_files.Listing()
    category_ids = {category.category_id for category in categories}
    videos = []
    for item in sorted(content["videos"], key=lambda v: int(v["id"])):
        try:
            videos.append(
                _video(item, of_video.get(item["id"], []), category_ids, source, root, listing)
            )
        except VideoError as error:
            rejects.append({"video_id": error.video_id, "path": error.path, "reason": error.reason})
    return Dataset(
        videos=tuple(videos),
        categories=tuple(categories),
        rejects=tuple(rejects),
        input_hash=digest,
        sources=(source,),
    )


def _images_as_videos(content: Mapping[str, Any], refuse: Any) -> dict[str, Any]:
    """COCO JSON in the form of YouTube-VIS: every image a video of one frame."""
    listed: dict[str, list[dict[str, Any]]] = {}
    for key in ("images", "annotations"):
        items = content.get(key) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise refuse(f"is not COCO: {key!r} is not a list of objects.")
        listed[key] = items
    videos = [
        {**image, "file_names": [image.get("file_name")], "length": 1} for image in listed["images"]
    ]
    annotations = [
        {
            **item,
            "video_id": item.get("image_id"),
            "segmentations": [_without_slivers(item.get("segmentation")) or None],
        }
        for item in listed["annotations"]
    ]
    return {**content, "videos": videos, "annotations": annotations}


def _without_slivers(segmentation: Any) -> Any:
    """COCO has polygons of fewer than three points: they cover nothing and are dropped."""
    if not isinstance(segmentation, list):
        return segmentation
    return [p for p in segmentation if not isinstance(p, list) or len(p) >= 6]


def _check_ids(key: str, items: list[Any], refuse: Any) -> None:
    seen: set[int] = set()
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise refuse(f"is not YouTube-VIS: {key}[{position}] is not an object.")
        number = item.get("id")
        if not isinstance(number, int) or not _is_int(number):
            raise refuse(
                f"is not YouTube-VIS: {key}[{position}] has id {number!r}, not a whole number."
            )
        if number in seen:
            raise refuse(f"has the id {number} twice in {key!r}.")
        seen.add(number)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INT


def _video(
    item: Mapping[str, Any],
    annotations: list[dict[str, Any]],
    category_ids: set[int],
    source: str,
    root: str,
    listing: frame_files.Listing,
) -> VideoRecord:
    video_id = int(item["id"])

    def fail(reason: str, path: str = source) -> VideoError:
        return VideoError(video_id, path, reason)

    height, width = item.get("height"), item.get("width")
    for name, value in (("height", height), ("width", width)):
        if not _is_int(value) or not 0 < int(value or 0) <= _MAX_SIDE:
            raise fail(f"{name} must be a whole number of pixels in 1..{_MAX_SIDE}, got {value!r}")
    assert isinstance(height, int)
    assert isinstance(width, int)
    names = item.get("file_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise fail("file_names must be a list of paths")
    if not names:
        raise fail("it has no frames (file_names is empty)")
    length = item.get("length", len(names))
    if length != len(names):
        raise fail(f"length says {length!r}, but file_names has {len(names)} entries")
    references = []
    for name in names:
        reference = _inside(name)
        if reference is None:
            raise fail(
                "the frame path leaves the frames root: paths must be relative to it, "
                "without '..' above it",
                name,
            )
        references.append(frame_files.join(root, reference))
    for reference in dict.fromkeys(frame_files.split(r)[0] for r in references):
        if not listing.exists(reference):
            raise fail("the frame does not exist", reference)
    title = item.get("name")
    return VideoRecord(
        video_id=video_id,
        size=(height, width),
        frames=tuple(references),
        instances=tuple(
            _instance(a, (height, width), len(names), category_ids, fail) for a in annotations
        ),
        name=title if isinstance(title, str) and title else names[0].partition("/")[0],
    )


def _inside(name: str) -> str | None:
    """A frame path normalised, or None where it is empty, absolute or leaves the root."""
    if not name or "\0" in name or "\\" in name or frame_files.is_remote(name):
        return None
    normal = posixpath.normpath(name)
    if normal.startswith("/") or normal in ("..", ".") or normal.startswith("../"):
        return None
    return normal


def _instance(
    item: Mapping[str, Any],
    size: tuple[int, int],
    length: int,
    category_ids: set[int],
    fail: Any,
) -> InstanceRecord:
    instance_id = int(item["id"])
    if not _is_int(item.get("category_id")) or item["category_id"] not in category_ids:
        raise fail(
            f"annotation {instance_id} has category_id {item.get('category_id')!r}, "
            "which is not among the categories"
        )
    segmentations = item.get("segmentations")
    if not isinstance(segmentations, list):
        raise fail(f"annotation {instance_id} has no list 'segmentations'")
    if len(segmentations) != length:
        raise fail(
            f"annotation {instance_id} has {len(segmentations)} segmentations for {length} frames"
        )
    if item.get("iscrowd", 0) not in (0, 1):
        raise fail(f"annotation {instance_id} has iscrowd {item['iscrowd']!r}, not 0 or 1")
    try:
        counts = to_counts(segmentations, size)
    except ValueError as error:
        raise fail(f"annotation {instance_id}, {error}") from error
    return InstanceRecord(
        instance_id=instance_id,
        category_id=item["category_id"],
        iscrowd=bool(item.get("iscrowd", 0)),
        segmentations=counts,
    )


def to_counts(segmentations: Sequence[Any], size: tuple[int, int]) -> tuple[bytes | None, ...]:
    """One object's segmentations, in any form that COCO allows, as compressed RLE counts.

    segmentations: per frame None, compressed or uncompressed RLE, or polygons in pixels
    size:          (height, width) of the frames
    returns:       per frame compressed counts; None where no pixel is set
    Errors:        ValueError saying which frame and what is wrong
    """
    reach = _REACH * max(size)
    counts: list[bytes | None] = []
    for index, segmentation in enumerate(segmentations):
        # pycocotools allocates by edge length: one absurd point would take all memory.
        if isinstance(segmentation, list) and _extent(segmentation) > reach:
            raise ValueError(f"frame {index}: a polygon reaches beyond {reach} pixels")
        try:
            mask = rle.compress(segmentation, size)
        except ValueError as error:
            raise ValueError(f"frame {index}: {error}") from error
        if mask is not None and tuple(mask["size"]) != size:
            raise ValueError(
                f"frame {index}: the mask has size {list(mask['size'])}, the video {list(size)} "
                "(height, width)"
            )
        counts.append(None if mask is None else mask["counts"])
    present = [index for index, data in enumerate(counts) if data is not None]
    pixels, areas = rle.measure([data for data in counts if data is not None])
    for index, covered, area in zip(present, pixels.tolist(), areas.tolist(), strict=True):
        if covered != size[0] * size[1]:
            reason = "is unreadable" if covered < 0 else f"covers {covered} pixels"
            raise ValueError(
                f"frame {index}: the RLE {reason}, a frame has {size[0] * size[1]} pixels"
            )
        if area == 0:
            counts[index] = None
    return tuple(counts)


def _extent(polygons: list[Any]) -> float:
    """The largest coordinate; what is no number is refused later, with a better message."""
    numbers = [
        abs(v)
        for polygon in polygons
        if isinstance(polygon, list)
        for v in polygon
        if isinstance(v, int | float)
    ]
    return max(numbers, default=0)
