"""What is written is read again as it was; what a form cannot hold is counted or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from pipelines import formats
from pipelines.formats import Joined, Labels, joining
from tests.pipelines.conftest import Videos, rectangle
from tests.pipelines.formats import drawn

OVERLAP = "pixels where masks overlap, given to the higher score alone"


def joined_of(videos: Videos) -> Joined:
    return formats.join([Labels("set", videos.content, videos.folder / "JPEGImages")])


def apart(videos: Videos) -> Videos:
    """The same videos with the second object of each below the first: no pixel in both."""
    for row in videos.content["annotations"][1::2]:
        length = len(row["segmentations"])
        row["segmentations"] = [rectangle(t, 13, t + 6, 20) for t in range(length)]
    return videos


@pytest.mark.parametrize("to", formats.WRITERS)
def test_a_round_trip_changes_nothing(
    make_videos: Callable[..., Videos], tmp_path: Path, to: str
) -> None:
    videos = apart(make_videos([4, 3, 12]))
    out = tmp_path / "out.json"
    assert formats.write(joined_of(videos), out, to) == {}
    again = formats.read(out, videos.folder / "JPEGImages")
    back = formats.join([again])
    assert back.frames == videos.folder / "JPEGImages"
    assert [v.file_names for v in back.videos] == [
        tuple(v["file_names"]) for v in videos.content["videos"]
    ]
    formats.write(back, tmp_path / "back.json", "ytvis")
    written = json.loads((tmp_path / "back.json").read_text())
    assert drawn.objects(written) == drawn.objects(videos.content)
    assert set(drawn.objects(written)) == {"v1", "v2", "v3"}


@pytest.mark.parametrize("to", ["ytvis", "cocovid"])
def test_stated_areas_decide_scores_and_were_lost_in_cocovid(
    make_videos: Callable[..., Videos], tmp_path: Path, to: str
) -> None:
    videos = make_videos([3])
    videos.content["annotations"][0]["areas"] = [None, 20000, 12.5]
    formats.write(joined_of(videos), tmp_path / "out.json", to)
    (back,) = formats.join(
        [formats.read(tmp_path / "out.json", videos.folder / "JPEGImages")]
    ).videos
    stated = [one.stated_areas for one in back.instances]
    assert [areas.tolist() for areas in stated if areas is not None] == [
        [0, 20000, 12.5],
        back.areas[1].tolist(),
    ]


def test_yt_vis_json_has_what_training_code_reads(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = make_videos([3])
    videos.content["annotations"][0] |= {
        "iscrowd": 1,
        "occlusion": [None, "no_occlusion", "slight_occlusion"],
    }
    formats.write(joined_of(videos), tmp_path / "out.json", "ytvis")
    text = (tmp_path / "out.json").read_text()
    assert text.startswith('{"info": {"description": "written by python -m jobs.convert"}')
    written = json.loads(text)
    (video,) = written["videos"]
    sizes = {"width": 36, "height": 24, "length": 3}
    names = [f"v1/{t:03d}.jpg" for t in range(3)]
    assert video == {"id": 1, "name": "", "file_names": names, **sizes}
    first, second = written["annotations"]
    assert first | {"segmentations": 0} == {
        "id": 11,
        "video_id": 1,
        "category_id": 7,
        "iscrowd": 1,
        "segmentations": 0,
        "bboxes": [None, [2, 4, 6, 8], [3, 4, 6, 8]],
        "areas": [None, 48, 48],
        "occlusion": [None, "no_occlusion", "slight_occlusion"],
        **sizes,
    }
    assert first["segmentations"][0] is None
    assert "occlusion" not in second


def test_cocovid_has_an_image_and_an_annotation_for_each_frame(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    formats.write(joined_of(make_videos([3, 2])), tmp_path / "out.json", "cocovid")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [(i["id"], i["video_id"], i["frame_id"]) for i in written["images"]] == [
        (1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 2, 0), (5, 2, 1),
    ]  # fmt: skip
    seen = [(a["image_id"], a["instance_id"]) for a in written["annotations"]]
    assert sorted(seen) == [(1, 12), (2, 11), (2, 12), (3, 11), (3, 12), (4, 22), (5, 21), (5, 22)]
    assert [a["id"] for a in written["annotations"]] == list(range(1, 9))
    assert written["annotations"][0]["bbox"] == [2, 4, 6, 8]


@pytest.mark.parametrize("scores", [(0.9, 0.2), (0.2, 0.9), None])
@pytest.mark.parametrize("to", ["mots", "png"])
def test_where_masks_overlap_the_higher_score_wins(
    make_videos: Callable[..., Videos],
    tmp_path: Path,
    to: str,
    scores: tuple[float, float] | None,
) -> None:
    videos = make_videos([2])
    masks = [drawn.box(2, 2, 10, 10), drawn.box(6, 2, 14, 10)]  # 32 pixels in both
    rles = [{"size": [24, 36], "counts": drawn.counts(mask).decode()} for mask in masks]
    for row, rle in zip(videos.content["annotations"], rles, strict=True):
        row["segmentations"] = [rle, None]
    joined = joined_of(videos)
    if scores is not None:
        rows = [
            {"video_id": 1, "category_id": c, "score": s, "segmentations": [rle, None]}
            for c, s, rle in zip((7, 3), scores, rles, strict=True)
        ]
        (tmp_path / "results.json").write_text(json.dumps(rows))
        joined = joining.with_results(joined, tmp_path / "results.json")
    lost = formats.write(joined, tmp_path / "out", to)
    assert lost[OVERLAP] == (32, "v1, frame 0")
    found = formats.read(tmp_path / "out", videos.folder / "JPEGImages")
    car, person = masks
    if scores == (0.2, 0.9):
        car = car & ~person
    else:
        person = person & ~car
    assert drawn.objects(found.content)["v1"] == sorted(
        [("car", [drawn.counts(car), None]), ("person", [drawn.counts(person), None])], key=str
    )


def test_an_object_that_others_cover_is_told(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = make_videos([2])
    mask = rectangle(2, 2, 10, 10)
    for row in videos.content["annotations"]:
        row["segmentations"] = [mask, mask]
    videos.content["annotations"].append(
        {**videos.content["annotations"][0], "id": 99, "iscrowd": 1, "segmentations": [mask, None]}
    )
    lost = formats.write(joined_of(videos), tmp_path / "out", "png")
    assert lost["objects that others cover wholly, lost"].times == 1
    assert lost["crowd regions, left out"].times == 1
    with Image.open(tmp_path / "out/Annotations/v1/000.png") as image:
        assert np.unique(np.array(image)).tolist() == [0, 1]


def test_png_have_indices_and_the_colours_of_davis(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    formats.write(joined_of(apart(make_videos([2]))), tmp_path / "out", "png")
    with Image.open(tmp_path / "out/Annotations/v1/001.png") as image:
        assert image.mode == "P"
        assert np.unique(np.array(image)).tolist() == [0, 1, 2]
        assert (image.getpalette() or [])[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["videos"]["v1"]["objects"]["1"] == {"category": "car", "frames": ["001"]}


def test_mots_keeps_the_rules_of_trackeval(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = make_videos([5])
    videos.content["categories"][1]["name"] = "pedestrian"
    formats.write(joined_of(videos), tmp_path / "out", "mots")
    assert (tmp_path / "out/labels.txt").read_text() == "car\npedestrian\n" + "\n" * 7 + "ignore\n"
    rows = [
        line.split(" ") for line in (tmp_path / "out/instances_txt/v1.txt").read_text().splitlines()
    ]
    assert {(row[1], row[2]) for row in rows} == {("1001", "1"), ("2001", "2")}
    assert all(row[3:5] == ["24", "36"] for row in rows)
    for t in range(5):
        masks = [{"size": [24, 36], "counts": row[5].encode()} for row in rows if row[0] == str(t)]
        assert len(masks) == (2 if t else 1)
        assert not len(masks) > 1 or coco.area(coco.merge(masks, intersect=True)) == 0
        with Image.open(tmp_path / f"out/instances/v1/{t:06d}.png") as image:
            assert image.mode.startswith("I")
            ids = np.array(image)
        for row in rows:
            if row[0] == str(t):
                assert drawn.counts(ids == int(row[1])).decode() == row[5]


def test_numbers_of_classes_leave_room_for_the_region_to_ignore(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = apart(make_videos([2]))
    videos.content["categories"] = [
        *({"id": n, "name": f"kind {n}"} for n in range(20, 40)),
        *videos.content["categories"],
    ]
    videos.content["annotations"][1]["category_id"] = 39
    formats.write(joined_of(videos), tmp_path / "out", "mots")
    names = (tmp_path / "out/labels.txt").read_text().splitlines()
    assert (names[0], names[9], len(names)) == ("car", "ignore", 23)
    found = formats.read(tmp_path / "out", videos.folder / "JPEGImages")
    assert sorted(c for c, _ in drawn.objects(found.content)["v1"]) == ["car", "kind 39"]


def test_numbers_that_trackeval_would_read_otherwise_are_told(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = apart(make_videos([3]))
    video = videos.content["videos"][0]
    video["file_names"] = [f"v1/{t:03d}.jpg" for t in (0, 5, 10)]
    drawn.images(videos.folder / "JPEGImages" / "v1", ["005.jpg", "010.jpg"])
    lost = formats.write(joined_of(videos), tmp_path / "out", "mots")
    ((kind, told),) = lost.items()
    assert "leave gaps or begin above 1" in kind
    assert told == (1, "v1")
    found = formats.read(tmp_path / "out", videos.folder / "JPEGImages")
    assert drawn.objects(found.content) == drawn.objects(videos.content)


def many(videos: Videos, number: int) -> Videos:
    (row,) = videos.content["annotations"][1:]
    dot = rectangle(0, 0, 1, 1)
    videos.content["annotations"] = [
        {**row, "id": n + 1, "segmentations": [dot]} for n in range(number)
    ]
    return videos


@pytest.mark.parametrize(
    ("to", "number", "message"),
    [
        ("png", 255, "has 255 objects, a palette at most 254.*--min-score"),
        ("mots", 1000, "more classes or objects than MOTS can number.*--to cocovid"),
    ],
)
def test_what_a_form_cannot_number_is_refused_and_leaves_nothing(
    make_videos: Callable[..., Videos], tmp_path: Path, to: str, number: int, message: str
) -> None:
    videos = many(make_videos([1]), number)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        formats.write(joined_of(videos), tmp_path / "out", to)
    assert sorted(tmp_path.iterdir()) == before
    formats.write(joined_of(many(make_videos([1]), number - 1)), tmp_path / "out", to)


def test_nothing_that_exists_is_written_into(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    joined = joined_of(make_videos([1]))
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="out exists; write into a new folder"):
        formats.write(joined, tmp_path / "out", "png")


def test_videos_of_one_folder_are_told_apart_by_id(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = apart(make_videos([2, 2]))
    for video in videos.content["videos"]:
        video["file_names"] = [f"all/{video['id']}_{t}.jpg" for t in range(2)]
    lost = formats.write(joined_of(videos), tmp_path / "out", "png")
    assert lost["videos without a folder of their own, named by their id"] == (2, "video_1")
    names = sorted(folder.name for folder in (tmp_path / "out/Annotations").iterdir())
    assert names == ["video_1", "video_2"]


@pytest.mark.parametrize("to", ["mots", "png"])
def test_frames_of_a_film_are_found_again(tmp_path: Path, to: str) -> None:
    drawn.film(tmp_path / "films" / "seen.mp4", 4)
    mask = {"size": [24, 36], "counts": drawn.counts(drawn.box(1, 2, 9, 9)).decode()}
    content = {
        "videos": [
            {"id": 1, "height": 24, "width": 36, "file_names": ["seen.mp4#1", "seen.mp4#3"]}
        ],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "segmentations": [mask, None]}],
    }
    formats.write(formats.join([Labels("a", content, tmp_path / "films")]), tmp_path / "out", to)
    found = formats.read(tmp_path / "out", tmp_path / "films")
    assert found.content["videos"][0]["file_names"] == ["seen.mp4#1", "seen.mp4#3"]
    ((category, masks),) = drawn.objects(found.content)["seen"]
    assert (category, [m is not None for m in masks]) == ("car", [True, False])


@pytest.mark.parametrize("to", ["mots", "png", "cocovid"])
@pytest.mark.parametrize("which", ["", "composite"])
def test_real_clips_come_back_bit_for_bit(
    shared: Path, tmp_path: Path, to: str, which: str
) -> None:
    folder = shared / "data" / "real" / which
    if not (folder / "instances.json").is_file():
        pytest.skip("needs the real clips in shared/data/real")
    joined = formats.join([formats.read(folder / "instances.json")])
    lost = formats.write(joined, tmp_path / "out.json", to)
    back = formats.join([formats.read(tmp_path / "out.json", folder / "JPEGImages")])
    assert {v.file_names: v.name for v in back.videos} == {
        v.file_names: v.name for v in joined.videos
    }

    def masks(found: Joined) -> dict[object, list[object]]:
        return {
            video.file_names: sorted(
                (
                    (found.categories[one.category_id], [m and m["counts"] for m in one.masks])
                    for one in video.instances
                ),
                key=str,
            )
            for video in found.videos
        }

    assert not lost
    assert masks(back) == masks(joined)
