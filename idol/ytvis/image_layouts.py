"""Annotations written image by image, brought together as videos: CocoVID, and COCO with track ids.

CocoVID (TAO, UVO, BDD100K, mmtracking): images carry video_id and frame_id, annotations an
instance_id or track_id. COCO exports of label tools (CVAT's tracks): annotations carry
attributes.track_id, and the images of one folder are one video.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from idol.ytvis import lazy_rows, repairs
from idol.ytvis.repairs import Repairs

_TRACK_KEYS = ("instance_id", "track_id")
_FRAME_KEYS = ("frame_id", "frame_index")

Row = Mapping[str, Any]


def by_video(content: Row, found: Repairs) -> tuple[Row, dict[Any, str]]:
    """The same annotations as YouTube-VIS JSON, one row per video and per track.

    content: parsed JSON; what is not written image by image with tracks comes back as it is
    found:   where guesses and annotations that are left out are counted
    returns: the JSON; video_id -> why the video cannot be used
    """
    images, annotations = _rows(content.get("images")), _rows(content.get("annotations"))
    if images and isinstance(images[0], lazy_rows.Row):
        return content, {}  # as `lazy_rows.load` has found
    if not images or annotations is None or any("segmentations" in row for row in annotations):
        return content, {}
    videos: dict[Any, Row] = {}
    if any("video_id" in image for image in images):
        videos = {_id(row, "id"): row for row in _rows(content.get("videos")) or ()}
        video_of = [_id(image, "video_id") for image in images]
    elif any(_track(row) is not None for row in annotations):
        folders = [str(i.get("file_name")).replace("\\", "/").rpartition("/")[0] for i in images]
        numbers = {folder: n for n, folder in enumerate(dict.fromkeys(folders), 1)}
        videos = {n: {"name": folder} for folder, n in numbers.items()}
        video_of = [numbers[folder] for folder in folders]
        found.add(repairs.FOLDERS, folders[0] or "the file's own", len(numbers))
    else:
        return content, {}
    frames: dict[Any, list[Row]] = {video_id: [] for video_id in videos}
    for video_id, image in zip(video_of, images, strict=True):
        frames.setdefault(video_id, []).append(image)
    faults: dict[Any, str] = {}
    places: dict[Any, tuple[Any, int]] = {}
    rows = []
    for video_id, own in frames.items():
        try:
            own = _in_order(own)
            rows.append(_video(video_id, videos.get(video_id, {}), own))
        except ValueError as error:
            faults[video_id] = str(error)
            rows.append({"id": video_id})
        places |= {_id(image, "id"): (video_id, t) for t, image in enumerate(own)}
    tracks = _tracks(annotations, places, {row["id"]: row for row in rows}, found, faults)
    joined = {"annotations": None if content.get("annotations") is None else tracks}
    return {"categories": content.get("categories"), "videos": rows, **joined}, faults


def _rows(value: Any) -> list[Row] | None:
    """A list of JSON objects; [] for null, None for anything else, which reading notices."""
    value = [] if value is None else value
    proper = isinstance(value, list) and all(isinstance(row, Mapping) for row in value)
    return value if proper else None


def _id(row: Row, key: str) -> int | float | str | None:
    """An id as it stands; None where it is none, which reading notices."""
    value = row.get(key)
    return value if isinstance(value, int | float | str) else None


def _in_order(images: Sequence[Row]) -> list[Row]:
    """A video's images by frame number, or by name as people count: 2 before 10."""
    for key in _FRAME_KEYS:
        numbers = [image.get(key) for image in images]
        if all(isinstance(number, int) for number in numbers):
            if len(set(numbers)) < len(numbers):
                raise ValueError(f"two of its images have the same {key}")
            return sorted(images, key=lambda image: int(image[key]))
    names = [image.get("file_name") for image in images]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("an image has neither a frame_id nor a file_name")

    def counted(image: Row) -> list[tuple[int, int, str]]:
        parts = re.split(r"([0-9]+)", image["file_name"])
        return [(1, int(p), p) if p.isdigit() else (0, 0, p) for p in parts]

    return sorted(images, key=counted)


def _video(video_id: Any, row: Row, images: Sequence[Row]) -> dict[str, Any]:
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


def _track(row: Row) -> int | str | None:
    """The id of an annotation's track; None where it has none."""
    attributes = row.get("attributes")
    for place in (row, attributes if isinstance(attributes, Mapping) else {}):
        for key in _TRACK_KEYS:
            value = place.get(key)
            if isinstance(value, int | str):
                return value
    return None


def _tracks(
    annotations: Sequence[Row],
    places: Mapping[Any, tuple[Any, int]],
    videos: Mapping[Any, Row],
    found: Repairs,
    faults: dict[Any, str],
) -> list[Row]:
    """Annotations of frames as annotations of tracks; what is wrong goes to found and faults."""
    tracks: dict[tuple[Any, Any], dict[str, Any]] = {}
    for index, row in enumerate(annotations):
        where = f"annotations[{index}]"
        image_id, track_id = _id(row, "image_id"), _track(row)
        if image_id not in places:
            found.add(repairs.ORPHANS, f"{where} of image {image_id}")
            continue
        video_id, frame = places[image_id]
        if video_id in faults:
            continue
        mask = row.get("segmentation")
        new = {
            "id": len(tracks) + 1,
            "video_id": video_id,
            "category_id": row.get("category_id"),
            "iscrowd": row.get("iscrowd", 0),
            "segmentations": [None] * videos[video_id]["length"],
        }
        track = tracks.setdefault((video_id, track_id), new)
        if track_id is None:
            faults[video_id] = f"{where} has no instance_id or track_id, which others have"
        elif mask in (None, []) and row.get("bbox"):
            faults[video_id] = f"{where} has a box and no mask"
        elif track["segmentations"][frame] is not None:
            faults[video_id] = f"{where} is the second of track {track_id} on image {image_id}"
        elif track["category_id"] != row.get("category_id"):
            faults[video_id] = (
                f"track {track_id} has category_id {track['category_id']}, and "
                f"{row.get('category_id')} from {where} on"
            )
        track["segmentations"][frame] = mask
        track["iscrowd"] = track["iscrowd"] or row.get("iscrowd", 0)
    return list(tracks.values())
