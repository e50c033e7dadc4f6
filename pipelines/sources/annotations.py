"""Annotation JSON → VideoRecord (door 0): facts only, no pixels.

To what `idol.ytvis.annotations` reads, frames are added: a video whose frame paths leave the frames
root, or whose frames do not exist, is rejected.
"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from idol.addresses import is_remote, shown
from idol.spool import Mapped, Spool
from idol.ytvis import annotations as annotation_files
from idol.ytvis import truth as truth_file
from idol.ytvis.annotations import InvalidAnnotations, InvalidJson
from idol.ytvis.truth import Truth
from idol.ytvis.videos import Annotations, Box, Reject, Video
from pipelines.errors import DatasetError, VideoError
from pipelines.sources import frames as frame_files
from pipelines.sources.frame_listing import FrameListing
from pipelines.storage import manifest, paths
from pipelines.storage.paths import RemotePath


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One true object of a video of T frames.

    segmentations: (T,) compressed COCO RLE counts at the video's size, None where not visible
    boxes:         (T,) as Instance has them
    """

    instance_id: int
    category_id: int
    iscrowd: bool
    segmentations: tuple[bytes | None, ...]
    boxes: tuple[Box | None, ...] = ()


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: facts only, no pixels.

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
class Dataset:
    """What `read` found.

    videos:     the usable videos, by ascending video_id; those of `read` are made again at each
                access, see idol.spool
    categories: category_id → name, ascending; the position is the label
    rejects:    everything left out
    input_hash: names the content of the annotations and the selection made from them
    frames:     names the frame files of the videos (FrameListing.fingerprint), wherever they lie
    sources:    the annotation files
    annotated:  videos whose annotations can be read, with usable frames or without; as videos
    labelled:   whether the files list annotations, be it none; without, the truth is not public
    """

    videos: Sequence[VideoRecord]
    categories: Mapping[int, str]
    rejects: tuple[Reject, ...]
    input_hash: str
    frames: str = ""
    sources: tuple[str, ...] = ()
    annotated: Sequence[Video] = ()
    labelled: bool = True

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The dataset's category_id of each label."""
        return tuple(self.categories)

    @property
    def category_names(self) -> tuple[str, ...]:
        """The name of each label."""
        return tuple(self.categories.values())

    @property
    def labels(self) -> dict[int, int]:
        """category_id → label 0..K-1."""
        return {category_id: label for label, category_id in enumerate(self.categories)}

    @property
    def rejected_videos(self) -> set[int]:
        """video_ids that were left out: none of them is in videos."""
        return {reject.video_id for reject in self.rejects}

    def truth(self) -> Truth | None:
        """The truth of these videos, for scoring; None where they have none.

        Videos without readable frames are in it, and will be scored as missed. Videos whose
        annotations cannot be read are left out, with a warning.
        """
        if not self.labelled:
            return None
        readable = {video.video_id for video in self.annotated}
        rejects = [reject for reject in self.rejects if reject.video_id not in readable]
        return truth_file.of_videos(self.categories, self.annotated, rejects)


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
    video_ids:   keep only these videos, as of a held-out split
    stride:      keep frames 0, stride, 2·stride, ... and the objects seen there: faster motion
    returns:     the data set; videos that cannot be used are in its rejects, with the reason
    Raises:
        DatasetError: the file as a whole is no annotation file.
        ValueError: a video id that is not there, or a stride below 1.
    """
    source = str(json_path)
    found, digest = load(source)
    root = default_root(source) if frames_root is None else str(frames_root)
    return chosen(found, digest, source, root, video_ids=video_ids, stride=stride)


def chosen(
    found: Annotations,
    digest: str,
    source: str,
    root: str,
    *,
    video_ids: Collection[int] | None = None,
    stride: int = 1,
) -> Dataset:
    """The data set of what was read; arguments, result and errors as of `read`.

    digest: names what was read
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    wanted = None if video_ids is None else set(video_ids)
    rejects, kept = list(found.rejects), list(found.videos)
    if wanted is not None:
        unknown = wanted - found.videos.keys() - {reject.video_id for reject in rejects}
        if unknown:
            raise ValueError(
                f"{len(unknown)} of the {len(wanted)} chosen video ids are not in "
                f"{source}, for example {min(unknown)}"
            )
        rejects = [reject for reject in rejects if reject.video_id in wanted]
        kept = [video_id for video_id in kept if video_id in wanted]
    annotated = Mapped(lambda video_id: found.videos[video_id].strided(stride), kept)
    if not is_remote(root):
        # Workers read the frames, and have a working directory of their own.
        root = str(Path(root).resolve())
    there = FrameListing(root)
    videos, faults = placed(annotated, source, there)
    rejects += faults
    if wanted is not None or stride != 1:
        selected = None if wanted is None else sorted(wanted)
        digest = manifest.hash_value([digest, selected, stride])
    return Dataset(
        videos=videos,
        categories=found.categories,
        rejects=tuple(rejects),
        input_hash=digest,
        frames=there.fingerprint(lambda: (frame for video in videos for frame in video.frames)),
        sources=(shown(source),),
        annotated=annotated,
        labelled=found.listed is not None,
    )


def load(source: str) -> tuple[Annotations, str]:
    """What a file at any place holds, and the SHA-256 of its bytes. Raises: DatasetError."""
    with opened(source) as local:
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return annotation_files.read_file(local, source), digest


@contextmanager
def opened(source: str) -> Iterator[Path]:
    """A local file with the content of one at any place, for a block of `judged`."""
    place = RemotePath(source) if is_remote(source) else Path(source)
    with judged(source), paths.local_file(place) as local:
        yield local


@contextmanager
def judged(source: str) -> Iterator[None]:
    """A block that reads annotations.

    Raises: DatasetError: there is no such file, or it is no annotation file.
    """
    todo = "Give the path of a YouTube-VIS JSON file."
    try:
        yield
    except InvalidAnnotations as error:
        raise DatasetError(source, error.reason, annotation_files.EXPECTED) from error
    except InvalidJson as error:
        raise DatasetError(source, f"is not JSON ({error}).", todo) from error
    except (OSError, ValueError) as error:
        raise DatasetError(source, f"cannot be read ({error}).", todo) from error


def combine(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one.

    Categories are united by category_id. The first data set keeps its video_ids and instance_ids;
    where a later one shares an id with what came before, all its ids are raised by the largest
    id so far, so that the result depends on the order given alone.

    Raises: ValueError: one category_id has two names, or nothing is given.
    """
    if not datasets:
        raise ValueError("combine needs at least one data set, got none")
    if len(datasets) == 1:
        return datasets[0]
    names: dict[int, str] = {}
    videos: list[Sequence[VideoRecord]] = []
    annotated: list[Sequence[Video]] = []
    rejects: list[Reject] = []
    taken: set[int] = set()
    taken_instances: set[int] = set()
    for dataset in datasets:
        for category_id, name in dataset.categories.items():
            if names.setdefault(category_id, name) != name:
                raise ValueError(
                    f"category {category_id} is {names[category_id]!r} and "
                    f"{name!r} in {', '.join(dataset.sources)}. Data sets that are "
                    "combined must number their categories alike: renumber one of them."
                )
        ids, instance_ids = {r.video_id for r in dataset.rejects}, set[int]()
        for video in dataset.annotated:
            ids.add(video.video_id)
            instance_ids.update(one.instance_id for one in video.instances)
        raised = max(taken) if taken & ids else 0
        taken |= {number + raised for number in ids}
        raised_instances = max(taken_instances) if taken_instances & instance_ids else 0
        taken_instances |= {number + raised_instances for number in instance_ids}
        change = partial(_raised, raised=raised, raised_instances=raised_instances)
        videos.append(Mapped(change, dataset.videos))
        annotated.append(Mapped(change, dataset.annotated))
        rejects += [r._replace(video_id=r.video_id + raised) for r in dataset.rejects]
    return Dataset(
        videos=_ascending(videos),
        categories=dict(sorted(names.items())),
        rejects=tuple(rejects),
        input_hash=manifest.hash_value([dataset.input_hash for dataset in datasets]),
        frames=" + ".join(dataset.frames for dataset in datasets),
        sources=tuple(source for dataset in datasets for source in dataset.sources),
        annotated=_ascending(annotated),
        labelled=all(dataset.labelled for dataset in datasets),
    )


def _ascending(parts: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The videos of several sequences as one, by ascending video_id."""
    places = [
        (video.video_id, part, place)
        for part, videos in enumerate(parts)
        for place, video in enumerate(videos)
    ]
    return Mapped(lambda at: parts[at[1]][at[2]], sorted(places))


def _raised(video: Any, raised: int, raised_instances: int) -> Any:
    """A VideoRecord or Video with its ids raised."""
    if not raised and not raised_instances:
        return video
    instances = tuple(
        dataclasses.replace(i, instance_id=i.instance_id + raised_instances)
        for i in video.instances
    )
    return dataclasses.replace(video, video_id=video.video_id + raised, instances=instances)


def default_root(source: str) -> str:
    """The folder of a file's frames where none is given."""
    parent = source.rpartition("/")[0] if is_remote(source) else Path(source).parent
    inside = frame_files.join(str(parent), "JPEGImages")
    return inside if frame_files.is_directory(inside) else str(parent)


def placed(
    videos: Iterable[Video], source: str, there: FrameListing
) -> tuple[Spool[VideoRecord], list[Reject]]:
    """The records of videos by where their frames are, and the rejects of the others."""
    records, rejects = Spool[VideoRecord](), []
    for video in videos:
        try:
            records.append(_record(video, source, there))
        except VideoError as error:
            rejects.append(Reject(*error.args))
    return records, rejects


def inside_root(name: str) -> str | None:
    """A frame path relative to the frames root, in its shortest form; None where it leaves it."""
    inside = posixpath.normpath(name)
    leaves = (
        "\0" in name
        or is_remote(name)
        or re.match("[A-Za-z]:/", name)
        or re.match(r"/|\.\.?(/|\Z)", inside)
    )
    return None if leaves else inside


def references(video: Video, source: str, root: str) -> list[str]:
    """The frames of a video below a root. Raises: VideoError: it names none, or one elsewhere."""
    names = video.file_names
    if names is None:
        raise VideoError(video.video_id, source, "file_names must be a list of paths")
    found = []
    for name in names:
        inside = inside_root(name)
        if inside is None:
            reason = "the frame path leaves the frames root: paths must be relative to it, "
            raise VideoError(video.video_id, name, reason + "without '..' above it")
        found.append(frame_files.join(root, inside))
    return found


def _record(video: Video, source: str, there: FrameListing) -> VideoRecord:
    """The record of a video. Raises: VideoError: its frames cannot be used."""
    frames = references(video, source, there.root)
    for path in dict.fromkeys(frame_files.split(reference)[0] for reference in frames):
        if there.bytes_of(path) is None:
            raise VideoError(video.video_id, path, "the frame does not exist")
    instances = []
    for i, areas in zip(video.instances, video.areas.tolist(), strict=True):
        counts = (m["counts"] if m and a else None for m, a in zip(i.masks, areas, strict=True))
        record = InstanceRecord(i.instance_id, i.category_id, i.crowd, tuple(counts), i.boxes)
        instances.append(record)
    name = video.name or (video.file_names or ("",))[0].partition("/")[0]
    return VideoRecord(video.video_id, video.size, tuple(frames), tuple(instances), name)
