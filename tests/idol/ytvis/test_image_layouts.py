"""Annotations written image by image become the videos that they were made from."""

import copy
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from idol.ytvis import annotations, repairs
from idol.ytvis.annotations import InvalidAnnotations

SIZE = (8, 10)


def rle(rng: np.random.Generator) -> dict[str, Any]:
    mask = np.asfortranarray(rng.random(SIZE) < 0.5, np.uint8)
    mask[0, 0] = 1
    return {"size": list(SIZE), "counts": coco_mask.encode(mask)["counts"].decode()}


def ytvis(seed: int) -> dict[str, Any]:
    """Videos of 1 to 12 frames in folders, with tracks that are not always there."""
    rng = np.random.default_rng(seed)
    data: dict[str, Any] = {"videos": [], "annotations": []}
    data["categories"] = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}]
    for video in range(1, 1 + rng.integers(1, 4)):
        length = int(rng.integers(1, 13))
        names = [f"clip{video}/frame_{t}.jpg" for t in range(length)]
        shape = {"height": SIZE[0], "width": SIZE[1], "length": length}
        data["videos"].append({"id": video, "name": f"clip{video}", **shape, "file_names": names})
        for _ in range(rng.integers(0, 4)):
            masks = [rle(rng) if rng.random() < 0.7 else None for _ in range(length)]
            masks[rng.integers(length)] = rle(rng)
            data["annotations"].append(
                {"id": len(data["annotations"]) + 1, "video_id": video, "iscrowd": 0}
                | {"category_id": int(rng.choice([1, 3])), "segmentations": masks}
            )
    return data


def by_image(data: dict[str, Any], layout: str, rng: np.random.Generator) -> dict[str, Any]:
    """The same image by image, in any order."""
    images, rows = [], []
    for video in data["videos"]:
        for t, name in enumerate(video["file_names"]):
            image = {"id": len(images) + 1, "file_name": name, "height": 8, "width": 10}
            cocovid = {"video_id": video["id"], "frame_id": t} if layout != "cvat" else {}
            images.append(image | cocovid)
            rows += [
                {"image_id": image["id"], "category_id": track["category_id"], "iscrowd": 0}
                | {"segmentation": track["segmentations"][t], "bbox": [0, 0, 2, 2], "area": 4}
                | ({"attributes": {"track_id": track["id"]}} if layout == "cvat" else {})
                | ({layout: track["id"]} if layout != "cvat" else {})
                for track in data["annotations"]
                if track["video_id"] == video["id"] and track["segmentations"][t] is not None
            ]
    rng.shuffle(images)
    rng.shuffle(rows)
    out = {"images": images, "annotations": rows, "categories": data["categories"]}
    return out if layout == "cvat" else {"videos": data["videos"], **out}


def content(found: annotations.Annotations) -> dict[str, Any]:
    """Videos by name, with the masks of every track; nothing of the file's order or numbers."""
    return {
        video.name: (
            video.size,
            video.file_names,
            sorted(
                (i.category_id, [None if m is None else m["counts"] for m in i.masks].__repr__())
                for i in video.instances
            ),
        )
        for video in found.videos.values()
    }


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), layout=st.sampled_from(["instance_id", "track_id", "cvat"]))
def test_videos_written_image_by_image_are_the_same_videos(seed, layout):
    data = ytvis(seed)
    if layout == "cvat" and not data["annotations"]:
        return
    given = by_image(data, layout, np.random.default_rng(seed))
    found = annotations.parse(given, "a.json")
    assert not found.rejects
    assert content(found) == content(annotations.parse(data, "a.json"))
    assert set(found.repairs) == ({repairs.FOLDERS} if layout == "cvat" else set())


def cocovid() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = {"video_id": 7, "height": 8, "width": 10}
    row = {"category_id": 1, "instance_id": 5}
    return {
        "videos": [{"id": 7, "name": "a"}, {"id": 8, "name": "b"}],
        "images": [
            {**image, "id": 1, "frame_id": 0, "file_name": "a/0.jpg"},
            {**image, "id": 2, "frame_id": 1, "file_name": "a/1.jpg"},
            {**image, "id": 3, "frame_id": 0, "file_name": "b/0.jpg", "video_id": 8},
        ],
        "annotations": [
            {**row, "image_id": 1, "segmentation": rle(rng)},
            {**row, "image_id": 2, "segmentation": rle(rng)},
            {**row, "image_id": 3, "segmentation": rle(rng)},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.mark.parametrize(
    ("place", "index", "fields", "reason"),
    [
        ("annotations", 1, {"instance_id": None}, "has no instance_id or track_id"),
        ("annotations", 1, {"category_id": 2}, "track 5 has category_id 1, and 2 from"),
        ("annotations", 1, {"image_id": 1}, "the second of track 5 on image 1"),
        ("annotations", 1, {"segmentation": [], "bbox": [1, 1, 2, 2]}, "a box and no mask"),
        ("images", 1, {"frame_id": 0}, "two of its images have the same frame_id"),
        ("images", 1, {"width": 11}, "different sizes .*: .8, 10., .8, 11."),
        ("images", 1, {"file_name": None, "frame_id": None}, "neither a frame_id nor a file_name"),
        ("images", 1, {"file_name": None}, "file_names must be a list of paths"),
        ("images", 1, {"id": 1}, "two images have the id 1"),
        ("annotations", 1, {"iscrowd": 2}, r"annotations.1. has iscrowd 2, not 0 or 1"),
    ],
)
def test_what_makes_identities_uncertain_rejects_that_video_alone(place, index, fields, reason):
    data = cocovid()
    data[place][index] |= fields
    found = annotations.parse(data, "a.json")
    assert list(found.videos) == [8]
    ((video_id, _, said),) = found.rejects
    assert video_id == 7
    assert re.search(reason, said), said


@pytest.mark.parametrize("stated", [True, False])
def test_annotations_of_a_repeated_image_id_moved_to_another_video(stated):
    data = cocovid()  # as of two files put together, and a third
    image, row = data["images"][2], data["annotations"][2]
    data["images"].append({**image, "id": 4, "file_name": "c/0.jpg", "video_id": 9})
    data["annotations"].append({**row, "image_id": 4})
    image["id"] = row["image_id"] = 1
    if not stated:
        data = {key: rows for key, rows in data.items() if key != "videos"}
        for image in data["images"]:
            del image["video_id"]
    found = annotations.parse(data, "a.json")
    third = 9 if stated else 3
    assert [(v, len(video.instances)) for v, video in found.videos.items()] == [(third, 1)]
    assert {reject.reason for reject in found.rejects} == {"two images have the id 1"}
    assert len(found.rejects) == 2


def test_annotations_of_no_image_are_not_those_of_an_image_without_an_id():
    data = cocovid()
    del data["images"][2]["id"], data["annotations"][2]["image_id"]
    found = annotations.parse(data, "a.json")
    assert [len(video.instances) for video in found.videos.values()] == [1, 0]
    assert found.repairs[repairs.ORPHANS] == (1, "annotations[2] of image None")


def test_annotations_of_images_that_are_not_there_are_counted():
    data = cocovid()
    data["annotations"].append({**data["annotations"][0], "image_id": 99})
    data["annotations"].append({**data["annotations"][0], "image_id": [1]})
    found = annotations.parse(data, "a.json")
    assert found.repairs[repairs.ORPHANS] == (2, "annotations[3] of image 99")
    assert len(found.videos) == 2


def test_images_without_a_video_are_refused_by_name():
    data = cocovid()
    del data["images"][0]["video_id"]
    with pytest.raises(InvalidAnnotations, match="has id None, not a whole number"):
        annotations.parse(data, "a.json")


def test_annotations_that_are_no_objects_are_refused_by_name():
    data = cocovid()
    data["annotations"].append(5)
    with pytest.raises(InvalidAnnotations, match=r"annotations\[3\] is not an object"):
        annotations.parse(data, "a.json")


def test_frames_without_a_number_are_counted_as_people_do():
    data = cocovid()
    for image, name in zip(data["images"], ["a/10.jpg", "a/9.jpg", "b/1.jpg"], strict=True):
        image["file_name"] = name
        del image["frame_id"]
    video = annotations.parse(data, "a.json").videos[7]
    assert video.file_names == ("a/9.jpg", "a/10.jpg")


def test_a_track_is_a_crowd_if_one_frame_says_so():
    data = cocovid()
    data["annotations"][1]["iscrowd"] = 1
    found = annotations.parse(copy.deepcopy(data), "a.json")
    assert [i.crowd for video in found.videos.values() for i in video.instances] == [True, False]


@pytest.mark.parametrize(
    ("first", "second", "crowd", "odd"),
    [("0", 1, True, 1), ("0", "0", False, 2), (1, "0", True, 1), (0, "1", True, 1)],
)
def test_odd_forms_of_iscrowd_hid_those_of_later_frames(first, second, crowd, odd):
    data = cocovid()
    for row, value in zip(data["annotations"], (first, second), strict=False):
        row["iscrowd"] = value
    found = annotations.parse(data, "a.json")
    assert [i.crowd for i in found.videos[7].instances] == [crowd]
    assert found.repairs[repairs.CROWD].times == odd


@pytest.mark.parametrize(
    ("first", "second", "stated", "odd"),
    [(7, 9.5, [7, 9.5], 0), (None, None, None, 0), (7, None, None, 1), (7, -1, None, 1)],
)
def test_stated_areas_were_measured_instead(first, second, stated, odd):
    data = cocovid()
    for row, area in zip(data["annotations"], (first, second), strict=False):
        row["area"] = area
    found = annotations.parse(data, "a.json")
    (instance,) = found.videos[7].instances
    areas = instance.stated_areas
    assert (areas if areas is None else areas.tolist()) == stated
    assert {kind: row.times for kind, row in found.repairs.items()} == (
        {repairs.AREAS: odd} if odd else {}
    )


def test_still_images_stay_videos_of_one_frame():
    data = cocovid()
    del data["videos"]
    for image in data["images"]:
        del image["video_id"], image["frame_id"]
    for row in data["annotations"]:
        del row["instance_id"]
    assert [v.length for v in annotations.parse(data, "a.json").videos.values()] == [1, 1, 1]
