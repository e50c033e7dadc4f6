"""Annotations written image by image, brought together as videos: CocoVID, and COCO with track ids.

CocoVID (TAO, UVO, BDD100K, mmtracking): images carry video_id and frame_id, annotations an
instance_id or track_id. COCO exports of label tools (CVAT's tracks): annotations carry
attributes.track_id, and the images of one folder are one video.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from idol.spool import Mapped
from idol.ytvis import repairs
from idol.ytvis.lazy_rows import Ids, Row, UnusualLayout
from idol.ytvis.repairs import Repairs

_TRACK_KEYS = ("instance_id", "track_id")
_FRAME_KEYS = ("frame_id", "frame_index")

Json = Mapping[str, Any]


def by_video(content: Json, found: Repairs) -> tuple[Json, dict[Any, str]]:
    """The same annotations as YouTube-VIS JSON, one row per video and per track.

    content: parsed JSON, or of `lazy_rows.load`, and then one row is in memory at a time; what is
             not written image by image with tracks comes back as it is
    found:   where guesses and annotations that are left out are counted
    returns: the JSON; video_id -> why the video cannot be used
    Raises:  UnusualLayout: a row that was not in memory is of a video
    """
    images, annotations = _rows(content.get("images")), _rows(content.get("annotations"))
    if not images or annotations is None or isinstance(images[0], Row):
        return content, {}
    if isinstance(images, list) and any("segmentations" in row for row in annotations):
        return content, {}
    stated: dict[Any, Json] = {}
    if any("video_id" in image for image in images):
        stated = {_id(row, "id"): row for row in _rows(content.get("videos")) or ()}
        video_of = [_id(image, "video_id") for image in images]
    elif any(_track(row) is not None for row in annotations):
        folders = [str(i.get("file_name")).replace("\\", "/").rpartition("/")[0] for i in images]
        numbers = {folder: n for n, folder in enumerate(dict.fromkeys(folders), 1)}
        stated = {n: {"name": folder} for folder, n in numbers.items()}
        video_of = [numbers[folder] for folder in folders]
        found.add(repairs.FOLDERS, folders[0] or "the file's own", len(numbers))
    else:
        return content, {}
    frames = _Frames(images, stated, video_of)
    rows = [Row(Ids(id=video_id), frames.video, video_id) for video_id in frames.of_video]
    tracks = _tracks(annotations, frames, found)
    joined = {"annotations": None if content.get("annotations") is None else tracks}
    return {"categories": content.get("categories"), "videos": rows, **joined}, frames.faults


class _Frames:
    """Which image is which frame.

    of_video: video_id -> places of its images in the file, in order of time
    faults:   video_id -> why the video cannot be used
    """

    def __init__(
        self, images: Sequence[Json], stated: Mapping[Any, Json], video_of: Sequence[Any]
    ) -> None:
        """stated: rows of videos; video_of: the video_id of each image"""
        self._images, self._stated, self._video_of = images, stated, video_of
        self.of_video = {video_id: array("q") for video_id in stated}
        for place, video_id in enumerate(video_of):
            self.of_video.setdefault(video_id, array("q")).append(place)
        self.faults: dict[Any, str] = {}
        self._places: dict[Any, int] = {}  # of images by their id
        self._time = array("q", [0]) * len(images)
        for video_id, places in self.of_video.items():
            own = [(images[place], place) for place in places]
            try:
                own = [own[n] for n in _in_order([image for image, _ in own])]
                _video(video_id, stated.get(video_id, {}), [image for image, _ in own])
            except ValueError as error:
                self.faults[video_id] = str(error)
            self.of_video[video_id] = array("q", [place for _, place in own])
            for t, (image, place) in enumerate(own):
                self._time[place] = t
                self._register(_id(image, "id"), place)

    def _register(self, image_id: Any, place: int) -> None:
        """Let annotations find an image; two of one id leave unsaid whose an annotation is."""
        if image_id is None:
            return
        first = self._places.setdefault(image_id, place)
        if first != place:
            for one in (first, place):
                reason = f"two images have the id {image_id}"
                self.faults.setdefault(self._video_of[one], reason)

    def find(self, image_id: Any) -> tuple[Any, int] | None:
        """video_id and index of the frame; None: there is no such image."""
        place = self._places.get(image_id)
        return None if place is None else (self._video_of[place], self._time[place])

    def video(self, video_id: Any) -> dict[str, Any]:
        """The row of a video."""
        if video_id in self.faults:
            return {"id": video_id}
        own = [self._images[place] for place in self.of_video[video_id]]
        return _video(video_id, self._stated.get(video_id, {}), own)


def _rows(value: Any) -> Sequence[Json] | None:
    """JSON objects in a list; [] for null, None for anything else, which reading notices."""
    value = [] if value is None else value
    proper = isinstance(value, list) and all(isinstance(row, Mapping) for row in value)
    return value if proper or isinstance(value, Mapped) else None


def _id(row: Json, key: str) -> int | float | str | None:
    """An id as it stands; None where it is none, which reading notices."""
    value = row.get(key)
    return value if isinstance(value, int | float | str) else None


def _in_order(images: Sequence[Json]) -> list[int]:
    """Places of a video's images by frame number, or by name as people count: 2 before 10."""
    for key in _FRAME_KEYS:
        numbers = [image.get(key) for image in images]
        if all(isinstance(number, int) for number in numbers):
            if len(set(numbers)) < len(numbers):
                raise ValueError(f"two of its images have the same {key}")
            return sorted(range(len(images)), key=lambda n: int(images[n][key]))
    names = [image.get("file_name") for image in images]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("an image has neither a frame_id nor a file_name")

    def counted(place: int) -> list[tuple[int, int, str]]:
        parts = re.split(r"([0-9]+)", names[place] or "")
        return [(1, int(p), p) if p.isdigit() else (0, 0, p) for p in parts]

    return sorted(range(len(images)), key=counted)


def _video(video_id: Any, row: Json, images: Sequence[Json]) -> dict[str, Any]:
    sizes = [(place.get("height"), place.get("width")) for place in images or [row]]
    if any(size != sizes[0] for size in sizes):
        raise ValueError(
            "its images have different sizes (height, width): "
            + ", ".join(sorted(set(map(str, sizes)))[:3])
        )
    height, width = sizes[0]
    names = [image.get("file_name") for image in images]
    named = {"file_names": names} if any(name is not None for name in names) else {}
    size = {"height": height, "width": width, "length": len(images)}
    return {"id": video_id, "name": row.get("name"), **size, **named}


def _track(row: Json) -> int | str | None:
    """The id of an annotation's track; None where it has none."""
    attributes = row.get("attributes")
    for place in (row, attributes if isinstance(attributes, Mapping) else {}):
        for key in _TRACK_KEYS:
            value = place.get(key)
            if isinstance(value, int | str):
                return value
    return None


def box_alone(row: Json) -> bool:
    """Whether an annotation of an image has a box and no mask.

    Its object is there, but without a mask training would take it for background.
    """
    return row.get("segmentation") in (None, []) and bool(row.get("bbox"))


@dataclass(slots=True)
class _Track:
    """A track so far: where its masks are."""

    number: int
    video_id: Any
    category_id: Any
    iscrowd: bool = False
    frames: array[int] = field(default_factory=lambda: array("q"))
    rows: array[int] = field(default_factory=lambda: array("q"))


def _tracks(annotations: Sequence[Json], frames: _Frames, found: Repairs) -> list[Row]:
    """Annotations of frames as annotations of tracks; what is wrong goes to found and faults."""
    tracks: dict[tuple[Any, Any], _Track] = {}
    faults = frames.faults
    for index, row in enumerate(annotations):
        where = f"annotations[{index}]"
        if "segmentations" in row:
            raise UnusualLayout(f"{where} is of a video")
        image_id, track_id = _id(row, "image_id"), _track(row)
        place = frames.find(image_id)
        if place is None:
            found.add(repairs.ORPHANS, f"{where} of image {image_id}")
            continue
        video_id, frame = place
        if video_id in faults:
            continue
        try:
            crowd = found.crowd(row.get("iscrowd", 0), where)
        except ValueError as error:
            faults[video_id] = str(error)
            continue
        mask, category_id = row.get("segmentation"), row.get("category_id")
        new = _Track(len(tracks) + 1, video_id, category_id)
        track = tracks.setdefault((video_id, track_id), new)
        if track_id is None:
            faults[video_id] = f"{where} has no instance_id or track_id, which others have"
        elif box_alone(row):
            faults[video_id] = f"{where} has a box and no mask"
        elif frame in track.frames:
            faults[video_id] = f"{where} is the second of track {track_id} on image {image_id}"
        elif track.category_id != category_id:
            faults[video_id] = (
                f"track {track_id} has category_id {track.category_id}, and "
                f"{category_id} from {where} on"
            )
        if mask is not None:
            track.frames.append(frame)
            track.rows.append(index)
        track.iscrowd = track.iscrowd or crowd

    def whole(track: _Track) -> dict[str, Any]:
        length = len(frames.of_video[track.video_id])
        masks, areas = [None] * length, [None] * length
        for frame, index in zip(track.frames, track.rows, strict=True):
            row = annotations[index]  # one is in memory at a time
            masks[frame], areas[frame] = row.get("segmentation"), row.get("area")
        ids = {"id": track.number, "video_id": track.video_id, "category_id": track.category_id}
        joined = {**ids, "iscrowd": int(track.iscrowd), "segmentations": masks}
        stated = length - areas.count(None)
        if 0 < stated < len(track.rows):
            found.add(repairs.AREAS, f"annotations[{track.rows[0]}]")
        return joined | ({"areas": areas} if 0 < stated == len(track.rows) else {})

    return [
        Row(Ids(id=t.number, video_id=t.video_id, category_id=t.category_id), whole, t)
        for t in tracks.values()
    ]
