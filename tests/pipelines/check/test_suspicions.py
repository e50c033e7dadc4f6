"""Copies, boxes and areas off their masks, odd names: told where they are, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from idol.ytvis import annotations as annotation_files
from pipelines.check import suspicions
from pipelines.check.suspicions import Suspicion
from pipelines.sources import annotations
from pipelines.sources.frame_listing import FrameListing
from tests.pipelines.conftest import Videos, rectangle


def all_of(videos: Videos) -> list[Suspicion]:
    found = annotation_files.parse(videos.content, "made")
    dataset = annotations.read(videos.write())
    there = FrameListing(str(videos.folder / "JPEGImages"))
    assert not dataset.rejects
    return [
        *(told for video in found.videos.values() for told in suspicions.of_tracks(video)),
        *suspicions.of_boxes(videos.content),
        *suspicions.of_frames(dataset.videos, there),
        *suspicions.of_names(found.videos.values(), found.categories.values()),
    ]


def copy_of_video(videos: Videos, frames: list[str]) -> None:
    """Add video 9 with these frames and the tracks of video 1."""
    first = videos.content["videos"][0]
    videos.content["videos"].append({**first, "id": 9, "length": len(frames), "file_names": frames})
    for row in [r for r in videos.content["annotations"] if r["video_id"] == 1]:
        masks = (row["segmentations"] * 2)[: len(frames)]
        new = {"id": row["id"] + 900, "video_id": 9, "segmentations": masks}
        videos.content["annotations"].append({**row, **new})


@pytest.fixture
def videos(make_videos: Callable[..., Videos]) -> Videos:
    return make_videos([4, 3])


def test_nothing_is_suspicious_in_a_clean_set(videos: Videos) -> None:
    assert all_of(videos) == []


def test_the_same_video_twice(videos: Videos) -> None:
    copy_of_video(videos, list(videos.content["videos"][0]["file_names"]))
    told = "video 9 (v1): 4 of 4 frames are of video 1 (v1)"
    assert all_of(videos) == [(suspicions.SAME, told, 9)]


def test_a_frame_of_two_videos(videos: Videos) -> None:
    names = ["v2/001.jpg", "v2/002.jpg", "v2/003.jpg"]
    shutil.copy(videos.frame(1, 0), videos.frame(2, 3))
    copy_of_video(videos, names)
    assert all_of(videos) == [
        (suspicions.SHARED, "video 9 (v2): 2 of 3 frames are of video 2 (v2)", 9)
    ]


def test_a_copy_of_the_files_of_a_video(videos: Videos) -> None:
    shutil.copytree(videos.folder / "JPEGImages" / "v1", videos.folder / "JPEGImages" / "again")
    names = [f"again/{t:03d}.jpg" for t in range(4)]
    copy_of_video(videos, names)
    assert all_of(videos) == [(suspicions.COPIED, "video 9 (again): as video 1 (v1)", 9)]
    # The same number of bytes is no copy yet.
    path = videos.folder / "JPEGImages" / names[-1]
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    assert all_of(videos) == []


def test_a_frame_twice_in_one_video_and_frames_out_of_order(videos: Videos) -> None:
    first, second = videos.content["videos"]
    first["file_names"][1] = first["file_names"][0]
    second["file_names"].reverse()
    assert all_of(videos) == [
        (suspicions.REPEATED, "video 1 (v1)", 1),
        (suspicions.UNORDERED, "video 2 (v2)", 2),
    ]


def test_frames_are_in_order_as_people_count(videos: Videos) -> None:
    names = ["v1/8.jpg", "v1/9.jpg", "v1/10.jpg", "v1/11.jpg"]
    for t, name in enumerate(names):
        videos.frame(1, t).rename(videos.folder / "JPEGImages" / name)
    videos.content["videos"][0]["file_names"] = names
    assert all_of(videos) == []


def test_tracks_with_the_masks_of_another(videos: Videos) -> None:
    first, second = videos.content["annotations"][:2]
    first["segmentations"][1] = second["segmentations"][1]
    assert all_of(videos) == []  # in one frame of three it may be so
    first["segmentations"][2] = second["segmentations"][2]
    told = "video 1: annotation 12: 2 of 4 frames as 11"
    assert all_of(videos) == [(suspicions.EQUAL, told, 1)]


def test_tracks_of_one_frame_and_videos_without_a_track(videos: Videos) -> None:
    videos.content["annotations"] = videos.content["annotations"][:1]
    videos.content["annotations"][0]["segmentations"][2:] = [None, None]
    assert all_of(videos) == [
        (suspicions.ONE_FRAME, "video 1: annotation 11", 1),
        (suspicions.NO_TRACKS, "video 2", 2),
    ]


@pytest.mark.parametrize(
    ("areas", "told"),
    [
        ([None, 48, 48, 48], None),
        ([0, 48.0, 60, 40], None),  # a polygon's own area
        ([None, 48, 96, 200], "frame 2: 96, the mask has 48"),
        ([48, 48, 48, 48], "frame 0: 48, the mask has 0"),
        ([None, 48, 48, None], "frame 3: 0, the mask has 48"),
    ],
)
def test_stated_areas(videos: Videos, areas: list[Any], told: str | None) -> None:
    videos.content["annotations"][0]["areas"] = areas
    expected = [(suspicions.AREAS, f"video 1: annotation 11, {told}", 1)] if told else []
    assert all_of(videos) == expected


BOXES: list[tuple[Any, str | None]] = [
    ([2.0, 4.0, 6.0, 8.0], None),
    ([2.4, 3.1, 5.4, 8.9], None),  # a polygon's own box
    (None, None),
    ("none", None),
    ([2, 4], None),
    ([2, 4, 10**400, 8], None),
    ([4, 2, 8, 6], "[4, 2, 8, 6], the mask has [2.0, 4.0, 6.0, 8.0]"),
    ([2, 4, 8, 12], "[2, 4, 8, 12], the mask has [2.0, 4.0, 6.0, 8.0]"),  # two corners
]


@pytest.mark.parametrize(("box", "told"), BOXES)
def test_stated_boxes_of_tracks(videos: Videos, box: Any, told: str | None) -> None:
    videos.content["annotations"][0]["bboxes"] = [None, box, [3, 4, 6, 8], [4, 4, 6, 8]]
    expected = [(suspicions.BOXES, f"video 1, annotations[0], frame 1: {told}", None)]
    assert all_of(videos) == (expected if told else [])


@pytest.mark.parametrize(("box", "told"), BOXES)
def test_stated_boxes_of_images(
    make_images: Callable[..., Videos], box: Any, told: str | None
) -> None:
    content = make_images([3]).content
    assert content["annotations"][0]["segmentation"] == rectangle(2, 4, 8, 12)
    image_id = content["annotations"][0]["image_id"]
    content["annotations"][0]["bbox"] = box
    expected = [(suspicions.BOXES, f"image {image_id}, annotations[0], frame 0: {told}", None)]
    assert list(suspicions.of_boxes(content)) == (expected if told else [])


def test_boxes_of_polygons_and_boxes_without_a_mask(make_images: Callable[..., Videos]) -> None:
    content = make_images([3]).content
    row = content["annotations"][0]
    row |= {"segmentation": [[2, 4, 8, 4, 8, 12, 2, 12]], "bbox": [2, 4, 6, 8]}
    assert list(suspicions.of_boxes(content)) == []
    row["segmentation"] = []
    ((kind, place, _),) = suspicions.of_boxes(content)
    assert kind == suspicions.BOXES
    assert place.endswith("[2, 4, 6, 8], the mask has [0.0, 0.0, 0.0, 0.0]")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"annotations": 3, "videos": None},
        {"annotations": [None, {"segmentations": 3, "bboxes": 3}]},
        {"annotations": [{"segmentations": {}, "bboxes": {}}]},
        {"annotations": [{"segmentation": [[1, 2]], "bbox": [1, 2, 3, 4], "image_id": []}]},
        {
            "images": [{"id": 1, "height": "a", "width": -1}],
            "annotations": [
                {"image_id": 1, "bbox": [1, 1, 9, 9], "segmentation": mask}
                for mask in ([[0, 0, 1, 1, 2, 2]], {"size": [9, 9], "counts": "11"}, "x", 7)
            ],
        },
    ],
)
def test_what_is_no_mask_or_box_is_passed_over(content: dict[str, Any]) -> None:
    assert list(suspicions.of_boxes(content)) == []


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("v1", False),
        ("Ampelmännchen 7 (a), b's & [c]", False),
        ("交叉口/北", False),
        ("u\u0308ber", True),
        (" v1", True),
        ("v1 /b", True),
        ("a\nb", True),
        ("a\u202eb", True),
        ("12:30", True),
        ("a?b", True),
        ("a#b", True),
        ("50%", True),
    ],
)
def test_odd_names(videos: Videos, name: str, odd: bool) -> None:
    videos.content["videos"][1]["name"] = name
    videos.content["categories"][0]["name"] = name
    told = [
        (suspicions.NAMES, f"category {name!r}", None),
        (suspicions.NAMES, f"video 2 ({name}): {name!r}", 2),
    ]
    assert all_of(videos) == (told if odd else [])
    videos.content["videos"][1]["name"] = "v"
    videos.content["videos"][1]["file_names"] = ["v.mp4#0", f"{name}.mp4#1", f"{name}.mp4#2"]
    found = annotation_files.parse(videos.content, "made")
    told = [(suspicions.NAMES, f"video 2 (v): {f'{name}.mp4'!r}", 2)]
    assert list(suspicions.of_names(found.videos.values(), ())) == (told if odd else [])
