"""One reader for every job: what is repaired, what rejects a video, what is no annotation file."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from idol.evaluation import evaluate
from idol.ytvis import annotations, repairs
from idol.ytvis.annotations import InvalidAnnotations
from idol.ytvis.videos import Annotations, Instance

SIZE = (8, 10)
BOX = [1, 0, 3, 0, 3, 8, 1, 8]  # columns 1 and 2
TWO_COLUMNS = 16


def rle(*columns: int) -> dict[str, Any]:
    """A mask of whole columns."""
    mask = np.zeros(SIZE, np.uint8)
    mask[:, list(columns)] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


def minimal() -> dict[str, Any]:
    return {
        "videos": [
            {
                "id": 4,
                "height": 8,
                "width": 10,
                "length": 3,
                "file_names": ["v/a.jpg", "v/b.jpg", "v/c.jpg"],
            }
        ],
        "categories": [{"id": 9, "name": "fish"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {
                "id": 1,
                "video_id": 4,
                "category_id": 9,
                "iscrowd": 0,
                "segmentations": [rle(1), rle(1, 2), None],
                "areas": [8, 16, None],
            }
        ],
    }


def images() -> dict[str, Any]:
    """COCO's layout."""
    return {
        "images": [{"id": n, "height": 8, "width": 10, "file_name": f"{n}.jpg"} for n in (3, 2)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": [BOX], "area": 15.5}
            for n in (2, 3)
        ],
    }


def parsed(**fields: Any) -> Annotations:
    """What becomes of the minimal file with other fields of its annotation."""
    data = minimal()
    data["annotations"][0] |= fields
    return annotations.parse(data, "a.json")


def only(found: Annotations) -> Instance:
    (video,) = found.videos.values()
    (instance,) = video.instances
    return instance


def areas(found: Annotations) -> list[list[int]]:
    return [row for video in found.videos.values() for row in video.areas.tolist()]


def counted(found: Annotations) -> dict[str, int]:
    return {kind: row.times for kind, row in found.repairs.items()}


def test_a_proper_file_is_read_as_it_is_without_a_warning(caplog):
    found = parsed()
    video = found.videos[4]
    assert found.categories == {2: "cat", 9: "fish"}
    assert (video.size, video.length, video.name) == ((8, 10), 3, "")
    assert video.file_names == ("v/a.jpg", "v/b.jpg", "v/c.jpg")
    assert (found.rejects, found.repairs, found.listed, caplog.text) == ((), {}, 1, "")
    instance = only(found)
    assert (instance.instance_id, instance.category_id, instance.crowd) == (1, 9, False)
    assert instance.stated_areas is not None
    assert instance.stated_areas.tolist() == [8, 16, 0]
    assert areas(found) == [[8, 16, 0]]


def test_every_form_of_a_mask_that_coco_allows_is_the_same_mask():
    runs = {"size": list(SIZE), "counts": [8, 16, 56]}
    found = parsed(segmentations=[rle(1, 2), runs, [BOX]], areas=[16, 16, 16])
    first, *others = only(found).masks
    assert others == [first, first]
    assert found.repairs == {}


@pytest.mark.parametrize(
    ("stated", "box"),
    [
        ([1, 2.5, 3, 4], (1.0, 2.5, 3.0, 4.0)),
        ([1, 2, 0, 0], (1.0, 2.0, 0.0, 0.0)),
        *((odd, None) for odd in (None, [], [1, 2, 3], [1, 2, -3, 4], [1, 2, float("nan"), 4])),
        *((odd, None) for odd in ("x", [True] * 4, [1e9, 0, 1, 1], [1, 2, "3", 4])),
    ],
)
def test_stated_boxes_are_kept_of_images_and_not_of_videos(stated, box):
    data = images()
    for row in data["annotations"]:
        row["bbox"] = stated
    found = annotations.parse(data, "coco.json")
    assert [one.boxes for v in found.videos.values() for one in v.instances] == [(box,)] * 2
    assert found.repairs == {}
    assert only(parsed(bbox=stated, bboxes=[stated] * 3)).boxes == ()


def test_images_of_coco_were_a_crash_for_scoring_and_are_videos_of_one_frame():
    found = annotations.parse(images(), "coco.json")
    assert list(found.videos) == [2, 3]
    assert [(v.length, v.file_names) for v in found.videos.values()] == [
        (1, ("2.jpg",)),
        (1, ("3.jpg",)),
    ]
    assert [v.instances[0].stated_areas.tolist() for v in found.videos.values()] == [[15.5]] * 2
    assert (found.rejects, found.repairs) == ((), {})


@pytest.mark.parametrize("nothing", [{}, {"segmentation": None}, {"segmentation": []}])
def test_an_object_of_coco_with_a_box_alone_was_left_unlabelled(nothing):
    data = images()
    row = {"id": 9, "image_id": 3, "category_id": 1, "bbox": [1, 1, 2, 2], "area": 4}
    data["annotations"].append(row | nothing)
    found = annotations.parse(data, "coco.json")
    assert list(found.videos) == [2]
    assert [reject[::2] for reject in found.rejects] == [(3, "annotation 9 has a box and no mask")]
    assert list(annotations.parse(data, "coco.json", compat=True).videos) == [2, 3]
    del data["annotations"][2]["bbox"]  # shows nothing, and is counted as ever
    assert counted(annotations.parse(data, "coco.json")) == {repairs.UNSEEN: 1}


def test_a_stride_keeps_every_nth_frame_and_who_is_seen_there():
    data = minimal()
    data["annotations"].append(
        dict(data["annotations"][0], id=2, segmentations=[None, rle(1), None], areas=[0, 9, 0])
    )
    video = annotations.parse(data, "a.json").videos[4].strided(2)
    assert (video.length, video.file_names) == (2, ("v/a.jpg", "v/c.jpg"))
    assert [i.instance_id for i in video.instances] == [1]
    assert video.areas.tolist() == [[8, 0]]
    assert video.instances[0].stated_areas.tolist() == [8, 0]


# -- repaired and counted -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "numbered", "count"),
    [
        ([0, 1, 2], [3, 1, 2], 1),
        ([7, 7, 3], [7, 8, 3], 1),
        ([None, "x", 2.5], [1, 2, 3], 3),
        ([2**60, 5, True], [6, 5, 7], 2),
        ([-4, -9, 1], [-4, -9, 1], 0),
    ],
)
def test_ids_from_0_or_repeated_or_missing_were_refused_and_are_numbered(ids, numbered, count):
    data = minimal()
    data["annotations"] = [dict(data["annotations"][0], id=number) for number in ids]
    found = annotations.parse(data, "a.json")
    assert [i.instance_id for i in found.videos[4].instances] == numbered
    assert counted(found) == ({repairs.IDS: count} if count else {})


@pytest.mark.parametrize(
    ("value", "crowd"),
    [(True, 1), (False, 0), ("1", 1), ("0", 0), (1.0, 1), (0.0, 0), (None, 0)],
)
def test_odd_forms_of_iscrowd_were_refused_or_believed_and_are_read_as_0_or_1(value, crowd):
    found = parsed(iscrowd=value)
    assert only(found).crowd == crowd
    assert counted(found) == {repairs.CROWD: 1}


def test_a_missing_iscrowd_is_0():
    data = minimal()
    del data["annotations"][0]["iscrowd"]
    found = annotations.parse(data, "a.json")
    assert (only(found).crowd, found.repairs) == (False, {})


@pytest.mark.parametrize(
    ("polygons", "area", "kinds"),
    [
        ([BOX, [5, 5, 9, 9]], TWO_COLUMNS, {repairs.SLIVERS: 1}),
        ([[5, 5, 9, 9]], 0, {repairs.SLIVERS: 1}),
        ([[]], 0, {repairs.SLIVERS: 1}),
        ([[], [4], BOX], TWO_COLUMNS, {repairs.SLIVERS: 2}),
        (BOX, TWO_COLUMNS, {repairs.FLAT: 1}),
        ([[[1, 0], [3, 0], [3, 8], [1, 8]]], TWO_COLUMNS, {repairs.PAIRS: 1}),
        ([[1, 0], [3, 0], [3, 8], [1, 8]], TWO_COLUMNS, {repairs.PAIRS: 1}),
        ([[[5, 5], [9, 9]], BOX], TWO_COLUMNS, {repairs.PAIRS: 1, repairs.SLIVERS: 1}),
        ([], 0, {}),
    ],
)
def test_odd_polygons_cost_a_video_or_the_whole_file_and_are_repaired(polygons, area, kinds):
    found = parsed(segmentations=[rle(1), polygons, None])
    assert areas(found) == [[8, area, 0]]
    assert (found.rejects, counted(found)) == ((), kinds)
    of_coco = images()
    of_coco["annotations"][0]["segmentation"] = polygons
    assert annotations.parse(of_coco, "a.json").rejects == ()


@pytest.mark.parametrize(
    "stated",
    [
        *(None, [], [8, 16], [8, 16, 0, 0], ["x", 1, 2], 5, "123456", {}),
        *([8, -16, None], [8, float("nan"), 0], [float("inf"), 1, 1], [10**400, 1, 1]),
        *([None, None, None], [0, 0, 0], [1e11, 1, 1], [[8], [16], [0]]),
    ],
)
def test_areas_that_cannot_be_were_an_error_or_made_ap_0_and_are_measured(stated):
    found = parsed(areas=stated)
    assert only(found).stated_areas is None
    assert counted(found) == {repairs.AREAS: 1}


@pytest.mark.parametrize("stated", [None, float("nan"), -1, "x", [15]])
def test_an_area_of_coco_that_cannot_be_is_measured(stated):
    data = images()
    data["annotations"][0]["area"] = stated
    found = annotations.parse(data, "a.json")
    assert found.videos[2].instances[0].stated_areas is None
    assert counted(found) == {repairs.AREAS: 1}


def test_annotations_of_no_video_counted_as_faulty_videos_and_are_left_out():
    data = minimal()
    data["annotations"] += [dict(data["annotations"][0], id=n, video_id=n) for n in (77, 78)]
    found = annotations.parse(data, "a.json")
    assert (len(found.videos[4].instances), found.rejects) == (1, ())
    assert counted(found) == {repairs.ORPHANS: 2}


@pytest.mark.parametrize("nothing", [None, [], [[1, 1, 2, 2]], rle()])
def test_an_instance_never_seen_could_not_be_found_and_is_left_out(nothing):
    data = minimal()
    data["annotations"].append(dict(data["annotations"][0], id=2, segmentations=[nothing] * 3))
    found = annotations.parse(data, "a.json")
    assert [i.instance_id for i in found.videos[4].instances] == [1]
    assert counted(found)[repairs.UNSEEN] == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["car", "car"], ["car", "car (2)"]),
        (["car", "car", "car (2)"], ["car", "car (3)", "car (2)"]),
        (["car", "car", "car"], ["car", "car (2)", "car (3)"]),
        ([None, "car"], ["1", "car"]),
        (["", 5], ["1", "2"]),
        (["2", None], ["2", "2 (2)"]),
        (["a\ud800", "\u00e9"], ["a?", "\u00e9"]),
    ],
)
def test_categories_of_one_name_or_none_are_told_apart(names, expected):
    data = minimal()
    data["categories"] = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
    data["annotations"][0]["category_id"] = 1
    found = annotations.parse(data, "a.json")
    assert list(found.categories.values()) == expected
    assert found.repairs


def test_backslashes_of_windows_rejected_a_video_and_are_turned_round():
    data = minimal()
    data["videos"][0]["file_names"][1:] = ["v\\b.jpg", "v\\x\\c.jpg"]
    found = annotations.parse(data, "a.json")
    assert found.videos[4].file_names == ("v/a.jpg", "v/b.jpg", "v/x/c.jpg")
    assert counted(found) == {repairs.BACKSLASHES: 2}


def test_text_that_cannot_be_written_crashed_later_and_is_replaced():
    data = json.loads(json.dumps(minimal()))
    data["videos"][0] |= {"name": "v\udc00", "file_names": ["\ud83d/a", "b", "c"]}
    found = annotations.parse(data, "a.json")
    assert (found.videos[4].name, found.videos[4].file_names) == ("v?", ("?/a", "b", "c"))
    assert counted(found) == {repairs.TEXT: 2}


def test_whole_numbers_written_as_decimals_are_read():
    data = minimal()
    data["videos"][0] |= {"id": 4.0, "height": 8.0}
    found = annotations.parse(data, "a.json")
    assert found.videos[4].size == SIZE
    assert counted(found) == {repairs.DECIMALS: 2}


def test_a_video_listed_twice_alike_is_taken_once():
    data = minimal()
    data["videos"].append(copy.deepcopy(data["videos"][0]))
    found = annotations.parse(data, "a.json")
    assert (list(found.videos), counted(found)) == ([4], {repairs.TWICE: 1})


def test_all_repairs_are_told_in_one_warning(caplog):
    parsed(id=0, iscrowd=True)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "a.json was repaired while reading: "
        f"1 {repairs.IDS} (first: annotations[0]); 1 {repairs.CROWD} (first: annotations[0])"
    )


# -- one video at fault ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"height": "8"}, r"height must be a whole number of pixels in 1\.\.32768, got '8'"),
        ({"height": 8.5}, "height must be"),
        ({"width": 0}, "width must be"),
        ({"width": 32769}, "width must be"),
        ({"width": 10**400}, "width must be"),
        ({"length": 9}, "length says 9, but file_names has 3 entries"),
        ({"length": True}, "length says True"),
        ({"file_names": [], "length": 0}, "it has no frames"),
        ({"file_names": [1, 2, 3]}, "file_names must be a list of paths"),
        ({"file_names": "abc"}, "file_names must be a list of paths"),
        ({"file_names": None, "length": None}, "length must be a whole number of frames from 1"),
        ({"file_names": None, "length": -1}, "length must be a whole number of frames from 1"),
    ],
)
def test_a_wrong_video_was_an_error_for_scoring_and_is_rejected_alone(change, reason):
    data = minimal()
    data["videos"] = [dict(data["videos"][0], id=1), data["videos"][0] | change]
    found = annotations.parse(data, "a.json")
    ((video_id, path, text),) = found.rejects
    assert (list(found.videos), video_id, path) == ([1], 4, "a.json")
    assert re.search(reason, text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 99}, "annotation 1 has category_id 99, which is not among"),
        ({"category_id": [1]}, r"annotation 1 has category_id \[1\]"),
        ({"iscrowd": "yes"}, "annotation 1 has iscrowd 'yes', not 0 or 1"),
        ({"iscrowd": 2}, "iscrowd 2"),
        ({"iscrowd": [0]}, r"iscrowd \[0\]"),
        ({"segmentations": None}, "annotation 1 has no list 'segmentations'"),
        ({"segmentations": [None]}, "annotation 1 has 1 segmentations for 3 frames"),
        ({"id": 0, "segmentations": []}, r"annotations\[0\] has 0 segmentations"),
    ],
)
def test_a_wrong_annotation_rejects_its_video(change, reason):
    found = parsed(**change)
    assert found.videos == {}
    assert re.search(reason, found.rejects[0].reason)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ({"size": [10, 8], "counts": "04"}, r"the mask has size \[10, 8\], the video \[8, 10\]"),
        ({"size": list(SIZE), "counts": "not a mask"}, "the RLE is unreadable, a frame has 80"),
        ({"size": list(SIZE), "counts": "04"}, "the RLE covers 4 pixels, a frame has 80"),
        ({"size": list(SIZE), "counts": rle(1)["counts"][:-1]}, "the RLE"),
        ({"size": list(SIZE), "counts": [5, 5]}, "runs add up to 10"),
        ({"size": list(SIZE), "counts": None}, "counts must be a compressed RLE string"),
        ({}, "a mask is null or"),
        (7, "a mask is null or"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon is a list of at least three x, y pairs"),
        ([["a"] * 6], "a polygon holds something that is no number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a polygon has a coordinate that is not finite"),
        ([[0, 0, 1e12, 0, 5, 5]], "a polygon reaches beyond 160 pixels"),
        ([[[0, 0], [10**400, 0], [5, 5]]], "a polygon reaches beyond 160 pixels"),
    ],
)
def test_a_mask_that_cannot_be_read_rejects_its_video(mask, reason):
    found = parsed(segmentations=[rle(1), mask, None])
    assert found.videos == {}
    assert re.search(f"annotation 1, frame 1: {reason}", found.rejects[0].reason)


def test_two_videos_of_one_id_are_rejected_together():
    data = minimal()
    data["videos"] += [dict(data["videos"][0], width=11), dict(data["videos"][0], id=5)]
    found = annotations.parse(data, "a.json")
    assert list(found.videos) == [5]
    assert [row[::2] for row in found.rejects] == [(4, "two videos have this id")]


# -- no annotation file ---------------------------------------------------------------------------


def test_videos_that_nobody_labelled_need_no_categories():
    videos = [{"id": 1, "height": 2, "width": 3, "file_names": ["1.jpg"]}]
    found = annotations.parse({"videos": videos}, "a.json")
    assert (found.categories, list(found.videos), found.listed) == ({}, [1], None)
    for labelled in ({"annotations": []}, {"categories": []}):
        with pytest.raises(InvalidAnnotations, match="categories"):
            annotations.parse({"videos": videos, **labelled}, "a.json")


def test_a_top_level_that_is_no_object_is_refused():
    for content in ([], None, 3, "x"):
        with pytest.raises(InvalidAnnotations, match=r"a\.json is not YouTube-VIS: the top level"):
            annotations.parse(content, "a.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.pop("videos"), "it has no list 'videos'"),
        (lambda d: d.update(videos={}), "it has no list 'videos'"),
        (lambda d: d.update(videos=[]), "it has no videos"),
        (lambda d: d.update(categories=[]), "it has no categories"),
        (lambda d: d.update(categories=None), "it has no list 'categories'"),
        (lambda d: d.update(annotations="none"), "it has no list 'annotations'"),
        (lambda d: d.update(annotations=[3]), r"annotations\[0\] is not an object"),
        (lambda d: d["videos"][0].update(id="first"), r"videos\[0\] has id 'first', not a whole"),
        (lambda d: d["videos"][0].update(id=10**400), r"videos\[0\] has id 1000"),
        (lambda d: d["annotations"][0].pop("video_id"), r"annotations\[0\] has video_id None"),
        (
            lambda d: d["categories"].append({"id": 9, "name": "eel"}),
            "it has the id 9 twice in 'categories'",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(change, reason):
    data = minimal()
    change(data)
    with pytest.raises(InvalidAnnotations, match=reason) as caught:
        annotations.parse(data, "a.json")
    assert "Expected YouTube-VIS JSON" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "\xff\xfe", "[" * 100_000, '{"videos": ' + "9" * 5000 + "}"]
)
def test_json_that_cannot_be_parsed_is_an_error_with_the_files_name(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"odd\.json is not valid JSON"):
        annotations.read(path)


# -- laws -----------------------------------------------------------------------------------------

VALUES: dict[str, list[Any]] = {
    "id": [0, 1, 1, 2, None, "a", 3.0, -1, 2**70],
    "iscrowd": [0, 0, 0, 1, None, True, "0", "1", 0.0, "yes", 2],
    "category_id": [2, 9, 9, 9.0, 5, "9"],
    "areas": [[8, 16, 8], None, [], [None] * 3, [-1, 2, 3], [1e12] * 3, [float("nan")] * 3, "x"],
    "video_id": [4, 4, 5, 6, 77],
    "occlusion": [None, [], ["no_occlusion"] * 3, ["much"] * 3, "x"],
}
MASKS: list[Any] = [
    *(None, [], [[]], BOX, [BOX], [BOX, [1, 2, 3]], [[5, 5, 9, 9]], rle(1), rle(3, 4), rle()),
    *([[[1, 0], [3, 0], [3, 8]]], [[1, 0], [3, 0], [3, 8]], {"size": list(SIZE), "counts": [80]}),
    *({"size": list(SIZE), "counts": "04"}, [[0, 0, 1e9, 0, 5, 5]], {}, [[1, 2, 3, 4, 5, 6, 7]]),
]


@st.composite
def dirty_files(draw: Callable[..., Any]) -> dict[str, Any]:
    """Annotations with any of the faults that are repaired or reject a video."""
    data = minimal()
    first = data["videos"][0]
    data["videos"] = [dict(first, id=4), dict(first, id=5), dict(first, id=6)]
    data["categories"][1]["name"] = draw(st.sampled_from(["cat", "fish", None, "\ud800"]))
    rows = []
    for number in range(draw(st.integers(1, 6))):
        row = dict(data["annotations"][0], id=number + 1)
        for key in draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=3)):
            row[key] = draw(st.sampled_from(VALUES[key]))
        # Mostly masks that can be read, so that some videos are accepted.
        kinds = draw(st.sampled_from([MASKS[:13], MASKS[:13], MASKS]))
        row["segmentations"] = [draw(st.sampled_from(kinds)) for _ in range(3)]
        rows.append({key: value for key, value in row.items() if draw(st.integers(0, 9))})
    data["annotations"] = [{"video_id": 4, **row} for row in rows]
    return data


def perfect(found: Annotations) -> list[dict[str, Any]]:
    """Results that find every instance of a file, as it was read."""
    return [
        {
            "video_id": video.video_id,
            "category_id": instance.category_id,
            "score": 0.9,
            "segmentations": [
                None if m is None else {"size": m["size"], "counts": m["counts"].decode()}
                for m in instance.masks
            ],
        }
        for video in found.videos.values()
        for instance in video.instances
    ]


@settings(deadline=None, max_examples=150)
@given(dirty_files())
def test_whatever_is_accepted_a_perfect_result_scores_1(data):
    found = annotations.parse(data, "a.json")
    assert found.videos.keys() | {row.video_id for row in found.rejects} == {4, 5, 6}
    if not found.videos:
        return
    scores = evaluate(data, perfect(found)).stats
    counting = any(not i.crowd for v in found.videos.values() for i in v.instances)
    assert scores["AP"] == pytest.approx(1.0 if counting else -1.0)
    assert scores["AR100"] == pytest.approx(1.0 if counting else -1.0)


@settings(deadline=None, max_examples=50)
@given(dirty_files())
def test_a_file_written_as_it_was_read_needs_no_repair(data):
    found = annotations.parse(data, "a.json")
    clean = {
        "videos": [
            {"id": v.video_id, "height": 8, "width": 10, "file_names": list(v.file_names or ())}
            for v in found.videos.values()
        ],
        "categories": [{"id": c, "name": name} for c, name in found.categories.items()],
        "annotations": [
            {"id": i.instance_id, "iscrowd": int(i.crowd), **entry}
            for i, entry in zip(
                [i for v in found.videos.values() for i in v.instances], perfect(found), strict=True
            )
        ],
    }
    if clean["videos"]:
        again = annotations.parse(json.loads(json.dumps(clean)), "b.json")
        assert (again.rejects, again.repairs) == ((), {})
        assert areas(again) == areas(found)
