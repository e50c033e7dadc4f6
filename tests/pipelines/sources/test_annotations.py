"""Door 0: what is wrong with a video rejects the video; a meaningless file is an error."""

import json
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from idol.masks.resize import decode
from pipelines.errors import DatasetError
from pipelines.sources import annotations


def one_reject(videos):
    """The only reject of a dataset whose first of two videos was damaged."""
    dataset = annotations.read(videos.write())
    assert [v.video_id for v in dataset.videos] == [2]
    assert dataset.rejected_videos == {1}
    (reject,) = dataset.rejects
    assert reject["video_id"] == 1
    return reject


def test_a_dataset_is_read_whole(make_videos):
    videos = make_videos([3, 2])
    dataset = annotations.read(videos.write())
    assert dataset.rejects == ()
    # Labels go by category_id, not by the order in the file.
    assert dataset.category_ids == (3, 7)
    assert dataset.category_names == ("person", "car")
    assert dataset.labels == {3: 0, 7: 1}
    first = dataset.videos[0]
    assert (first.video_id, first.size, len(first), first.name) == (1, (24, 36), 3, "v1")
    assert first.frames == tuple(str(videos.frame(1, i)) for i in range(3))
    assert [i.instance_id for i in first.instances] == [11, 12]
    assert [s is None for s in first.instances[0].segmentations] == [True, False, False]
    mask = decode([first.instances[0].segmentations[1]], (24, 36))[0]
    assert mask.sum() == 6 * 8
    assert mask[4:12, 2:8].all()


def test_frames_lie_beside_the_file_where_there_is_no_jpegimages(make_videos):
    videos = make_videos([2])
    for child in (videos.folder / "JPEGImages").iterdir():
        child.rename(videos.folder / child.name)
    (videos.folder / "JPEGImages").rmdir()
    assert annotations.read(videos.write()).rejects == ()


def test_another_frames_root_can_be_given(make_videos, tmp_path):
    videos = make_videos([2])
    (videos.folder / "JPEGImages").rename(tmp_path / "elsewhere")
    assert len(annotations.read(videos.write(), tmp_path / "elsewhere").videos) == 1


def test_a_benchmark_without_truth_is_read(make_videos):
    for value in ("absent", None):
        videos = make_videos([2], folder=str(value))
        videos.content.pop("annotations")
        if value is None:
            videos.content["annotations"] = None
        dataset = annotations.read(videos.write())
        assert dataset.videos[0].instances == ()


def test_polygons_and_both_kinds_of_rle_are_the_same_mask(make_videos):
    videos = make_videos([3])
    rle = videos.content["annotations"][1]["segmentations"][0]
    runs = [2 * 24 + 4] + [8, 16] * 5 + [8, 24 * 28 + 12]
    videos.content["annotations"][1]["segmentations"] = [
        rle,
        {"size": [24, 36], "counts": runs},
        [[2, 4, 8, 4, 8, 12, 2, 12]],
    ]
    (video,) = annotations.read(videos.write()).videos
    a, b, c = video.instances[1].segmentations
    assert a == b == c == rle["counts"].encode()


def test_an_empty_mask_is_an_absent_one(make_videos):
    videos = make_videos([4])
    empty = coco.encode(np.zeros((24, 36), np.uint8, order="F"))["counts"].decode()
    videos.content["annotations"][1]["segmentations"] = [
        {"size": [24, 36], "counts": empty},
        {"size": [24, 36], "counts": [24 * 36]},
        [],
        None,
    ]
    (video,) = annotations.read(videos.write()).videos
    assert video.instances[1].segmentations == (None, None, None, None)


# -- one video at fault ---------------------------------------------------------------------------


def test_a_missing_frame_rejects_its_video(make_videos):
    videos = make_videos([3, 2])
    videos.frame(1, 1).unlink()
    assert one_reject(videos) == {
        "video_id": 1,
        "path": str(videos.frame(1, 1)),
        "reason": "the frame does not exist",
    }


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.jpg",
        "..",
        "v1/../../x.jpg",
        "/etc/passwd",
        "",
        "s3://bucket/a.jpg",
        "a\0b.jpg",
        "..\\..\\x.jpg",
    ],
)
def test_a_path_that_leaves_the_root_rejects_its_video(make_videos, name):
    videos = make_videos([3, 2])
    videos.content["videos"][0]["file_names"][1] = name
    reject = one_reject(videos)
    assert "leaves the frames root" in reject["reason"]
    assert reject["path"] == name


def test_a_path_that_wanders_inside_the_root_is_fine(make_videos):
    videos = make_videos([3, 2])
    videos.content["videos"][0]["file_names"][1] = "v1/../v1/./001.jpg"
    dataset = annotations.read(videos.write())
    assert dataset.videos[0].frames[1] == str(videos.frame(1, 1))


def damage_length(v, a):
    a["segmentations"].pop()


def damage_category(v, a):
    a["category_id"] = 99


def damage_size(v, a):
    a["segmentations"][1]["size"] = [36, 24]


def damage_counts(v, a):
    a["segmentations"][1]["counts"] = "not a mask"


def damage_counts_cut(v, a):
    a["segmentations"][1]["counts"] = a["segmentations"][1]["counts"][:-1]


def damage_runs(v, a):
    a["segmentations"][1] = {"size": [24, 36], "counts": [5, 5]}


def damage_polygon(v, a):
    a["segmentations"][1] = [[1, 2, 3]]


def damage_polygon_far(v, a):
    a["segmentations"][1] = [[0, 0, 1e12, 0, 5, 5]]


def damage_segmentations(v, a):
    a["segmentations"] = "abc"


def damage_crowd(v, a):
    a["iscrowd"] = "yes"


def damage_stated_length(v, a):
    v["length"] = 9


def damage_height(v, a):
    v["height"] = "24"


def damage_width(v, a):
    v["width"] = 0


def damage_no_frames(v, a):
    v["file_names"], v["length"] = [], 0


def damage_names(v, a):
    v["file_names"] = [1, 2, 3]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_length, "annotation 12 has 2 segmentations for 3 frames"),
        (damage_category, "category_id 99"),
        (damage_size, r"frame 1: the mask has size \[36, 24\], the video \[24, 36\]"),
        (damage_counts, "frame 1: the RLE is unreadable"),
        (damage_counts_cut, "frame 1: the RLE"),
        (damage_runs, "frame 1: runs add up to 10"),
        (damage_polygon, "frame 1: a polygon is a list"),
        (damage_polygon_far, "frame 1: a polygon reaches beyond 576 pixels"),
        (damage_segmentations, "no list 'segmentations'"),
        (damage_crowd, "iscrowd 'yes'"),
        (damage_stated_length, "length says 9, but file_names has 3"),
        (damage_height, "height must be a whole number"),
        (damage_width, "width must be a whole number"),
        (damage_no_frames, "no frames"),
        (damage_names, "file_names must be a list of paths"),
    ],
)
def test_a_wrong_annotation_rejects_its_video_with_the_reason(make_videos, damage, words):
    videos = make_videos([3, 2])
    damage(videos.content["videos"][0], videos.content["annotations"][1])
    assert re.search(words, one_reject(videos)["reason"])


def test_an_annotation_of_no_video_is_recorded(make_videos):
    videos = make_videos([2])
    videos.content["annotations"][0]["video_id"] = 77
    dataset = annotations.read(videos.write())
    (reject,) = dataset.rejects
    assert reject["reason"] == "annotation 11 belongs to video 77, which does not exist"
    assert len(dataset.videos[0].instances) == 1


@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=24))
def test_no_counts_string_crashes_or_passes_with_the_wrong_area(counts):
    try:
        (found,) = annotations.to_counts([{"size": [3, 4], "counts": counts}], (3, 4))
    except ValueError:
        return
    assert found is None or decode([found], (3, 4)).any()


# -- the whole file at fault ----------------------------------------------------------------------


def no_videos(content):
    content["videos"] = []


def no_categories(content):
    content["categories"] = []


def videos_missing(content):
    del content["videos"]


def coco_images(content):
    content.pop("videos")
    content["images"] = "none"


def same_video_twice(content):
    content["videos"].append(content["videos"][0])


def same_annotation_twice(content):
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


def same_category_twice(content):
    content["categories"][1]["id"] = content["categories"][0]["id"]


def word_for_an_id(content):
    content["videos"][0]["id"] = "first"


def video_is_a_list(content):
    content["videos"][0] = []


def annotation_of_an_image(content):
    content["annotations"][0]["image_id"] = content["annotations"][0].pop("video_id")


def annotations_are_text(content):
    content["annotations"] = "none"


def nameless_category(content):
    del content["categories"][0]["name"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_videos, "has no videos"),
        (no_categories, "has no categories"),
        (videos_missing, "no list 'videos'"),
        (coco_images, "is not COCO: 'images' is not a list of objects"),
        (same_video_twice, "has the id 1 twice in 'videos'"),
        (same_annotation_twice, "has the id 11 twice in 'annotations'"),
        (same_category_twice, "has the id 7 twice in 'categories'"),
        (word_for_an_id, "id 'first', not a whole number"),
        (video_is_a_list, r"videos\[0\] is not an object"),
        (annotation_of_an_image, "annotation 11 has no whole number 'video_id'"),
        (annotations_are_text, "'annotations' is not a list"),
        (nameless_category, "category 7 has no name"),
    ],
)
def test_a_file_that_is_not_youtube_vis_is_refused(make_videos, damage, words):
    videos = make_videos([2])
    damage(videos.content)
    with pytest.raises(DatasetError, match=words) as caught:
        annotations.read(videos.write())
    assert "Expected YouTube-VIS JSON" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "[" * 100_000, "[1, 2]", "null", "3"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match="is not"):
        annotations.read(path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        annotations.read(tmp_path / "none.json")
    with pytest.raises(DatasetError, match="cannot be read"):
        annotations.read(tmp_path)


# -- selecting and combining ----------------------------------------------------------------------


def test_a_held_out_split_is_chosen_by_video_id(make_videos):
    path = make_videos([2, 2, 2]).write()
    chosen = annotations.read(path, video_ids=[3, 1])
    assert [v.video_id for v in chosen.videos] == [1, 3]
    assert chosen.input_hash != annotations.read(path).input_hash
    assert chosen.input_hash == annotations.read(path, video_ids=(1, 3)).input_hash
    with pytest.raises(ValueError, match="for example 8"):
        annotations.read(path, video_ids=[1, 8])


def test_a_stride_keeps_every_nth_frame_and_who_is_seen_there(make_videos):
    videos = make_videos([5])
    whole = annotations.read(videos.write()).videos[0]
    # Object 1 is absent from frame 0; with stride 5 nothing of it remains.
    (fast,) = annotations.read(videos.write(), stride=2).videos
    assert fast.frames == whole.frames[::2]
    assert fast.instances[1].segmentations == whole.instances[1].segmentations[::2]
    (still,) = annotations.read(videos.write(), stride=5).videos
    assert [i.instance_id for i in still.instances] == [12]
    with pytest.raises(ValueError, match="at least 1"):
        annotations.read(videos.write(), stride=0)


def test_combined_data_sets_keep_every_video_under_its_own_id(make_videos):
    parts = [annotations.read(make_videos([2, 3], folder=name).write()) for name in "abc"]
    whole = annotations.combine(parts)
    assert [v.video_id for v in whole.videos] == [1, 2, 3, 4, 5, 6]
    assert [v.frames for v in whole.videos] == [v.frames for p in parts for v in p.videos]
    instances = [i.instance_id for v in whole.videos for i in v.instances]
    assert len(set(instances)) == len(instances) == 12
    assert whole.categories == parts[0].categories
    assert annotations.combine(parts[:1]) is parts[0]


def test_combining_keeps_ids_that_do_not_clash(make_videos):
    other = make_videos([2], folder="b")
    other.content["videos"][0]["id"] = 50
    for item in other.content["annotations"]:
        item["video_id"] = 50
    whole = annotations.combine(
        [annotations.read(make_videos([2]).write()), annotations.read(other.write())]
    )
    assert [v.video_id for v in whole.videos] == [1, 50]


def test_combining_refuses_one_number_for_two_categories(make_videos):
    other = make_videos([2], folder="b")
    other.content["categories"][0]["name"] = "cart"
    with pytest.raises(ValueError, match="category 7 is 'car' and 'cart'"):
        annotations.combine(
            [annotations.read(make_videos([2]).write()), annotations.read(other.write())]
        )
    with pytest.raises(ValueError, match="at least one"):
        annotations.combine([])


def test_the_order_in_the_file_does_not_matter_for_the_videos(make_videos):
    videos = make_videos([2, 3])
    straight = annotations.read(videos.write()).videos
    videos.content["videos"].reverse()
    assert annotations.read(videos.write()).videos == straight


def test_the_real_clips_are_read_without_a_reject(shared):
    root = shared / "data" / "real"
    if not root.is_dir():
        pytest.skip("needs the real clips of the reference data")
    real = annotations.read(root / "instances.json")
    composite = annotations.read(root / "composite" / "instances.json")
    whole = annotations.combine([real, composite])
    assert (real.rejects, composite.rejects) == ((), ())
    assert (len(real.videos), len(composite.videos), len(whole.videos)) == (35, 11, 46)
    truth = json.loads((root / "instances.json").read_text())
    areas = {a["id"]: a["areas"] for a in truth["annotations"]}
    for video in real.videos:
        for instance in video.instances:
            for counts, area in zip(
                instance.segmentations, areas[instance.instance_id], strict=True
            ):
                size = list(video.size)
                found = int(coco.area({"size": size, "counts": counts})) if counts else 0
                assert found == (area or 0)
    assert all(os.path.isfile(frame) for video in whole.videos for frame in video.frames)


def test_an_image_of_coco_is_a_video_of_one_frame(make_images):
    dataset = annotations.read(make_images([3]).write())
    assert [len(video) for video in dataset.videos] == [1, 1, 1]
    # Object 11 is absent from the first image; slivers of fewer than three points are dropped.
    assert [len(video.instances) for video in dataset.videos] == [1, 2, 2]
    assert all(i.segmentations[0] is not None for v in dataset.videos for i in v.instances)
