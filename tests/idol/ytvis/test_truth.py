import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from idol.ytvis import truth as truth_file

SIZE = (8, 10)


def rle(*columns: int) -> dict:
    """A mask of whole columns."""
    mask = np.zeros(SIZE, np.uint8)
    mask[:, list(columns)] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


def minimal() -> dict:
    return {
        "videos": [{"id": 4, "height": 8, "width": 10, "length": 3, "file_names": ["a", "b", "c"]}],
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


def test_truth_is_read_from_a_path_and_from_parsed_json(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(minimal()))
    for source in (path, str(path), minimal()):
        truth = truth_file.read(source)
        assert truth.categories == {2: "cat", 9: "fish"}
        video = truth.videos[4]
        assert (video.size, video.length, len(video)) == ((8, 10), 3, 1)
        assert video.areas.tolist() == [[8, 16, 0]]
        assert video.average_areas.tolist() == [12.0]
        assert video.occlusion is None
    assert truth_file.read(truth) is truth


def test_stated_areas_win_over_the_masks_and_null_or_zero_entries_do_not_count():
    data = minimal()
    data["annotations"][0]["areas"] = [100, 0, None]
    assert truth_file.read(data).videos[4].average_areas.tolist() == [100.0]
    del data["annotations"][0]["areas"]
    assert truth_file.read(data).videos[4].average_areas.tolist() == [12.0]


def test_occlusion_is_the_mean_of_the_upper_half_of_the_frames():
    data = minimal()
    # Present: 0, 0.75, 0.25; the two highest of three: (0.75 + 0.25) / 2.
    data["annotations"][0]["occlusion"] = [
        "no_occlusion",
        "severe_occlusion",
        "slight_occlusion",
        None,
    ]
    assert truth_file.read(data).videos[4].occlusion.tolist() == [0.5]


def test_a_video_without_length_has_as_many_frames_as_file_names():
    data = minimal()
    del data["videos"][0]["length"]
    assert truth_file.read(data).videos[4].length == 3


def test_truth_from_masks_equals_truth_from_json():
    read = truth_file.read(minimal()).videos[4]
    made = truth_file.from_masks(
        4,
        SIZE,
        3,
        [9, 2],
        instance_ids=[1],
        category_ids=[9],
        crowd=[False],
        segmentations=[[rle(1)["counts"].encode(), rle(1, 2)["counts"].encode(), None]],
    )
    assert made.masks == read.masks
    assert made.categories == read.categories
    for name in ("instance_ids", "category_ids", "crowd", "average_areas", "areas"):
        assert getattr(made, name).tolist() == getattr(read, name).tolist()
    assert made.without_masks().masks == ()


def broken(change):
    data = copy.deepcopy(minimal())
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("annotations"), "truth of this split is not public"),
        (lambda d: d.update(annotations=None), "truth of this split is not public"),
        (lambda d: d.pop("videos"), "not YouTube-VIS truth"),
        (lambda d: d.update(videos={}), r"truth\['videos'\] must be a list"),
        (lambda d: d.update(annotations=[3]), r"annotations\[0\] must be an object"),
        (lambda d: d["videos"].append(d["videos"][0]), r"videos\[1\] repeats the id 4"),
        (lambda d: d["videos"][0].update(height=0), r"videos\[0\] has height"),
        (lambda d: d["annotations"][0].update(id="1"), r"annotations\[0\].id must be a whole"),
        (lambda d: d["annotations"][0].update(id=0), r"annotations\[0\] has id 0.*compat"),
        (
            lambda d: d["annotations"].append(d["annotations"][0]),
            r"annotations\[1\] repeats the id",
        ),
        (lambda d: d["annotations"][0].update(video_id=5), "belongs to video 5"),
        (lambda d: d["annotations"][0].update(category_id=5), "has category_id 5"),
        (lambda d: d["annotations"][0].update(segmentations=[None]), "has 1 entries.* 3 frames"),
        (lambda d: d["annotations"][0].update(segmentations=None), "one entry per frame"),
        (
            lambda d: d["annotations"][0]["segmentations"][1].update(size=[10, 8]),
            r"segmentations\[1\] has size \[10, 8\], but video 4 is \[8, 10\]",
        ),
        (
            lambda d: d["annotations"][0]["segmentations"][1].update(counts="04"),
            r"annotations\[0\].segmentations\[1\] is no readable RLE",
        ),
        (
            lambda d: d["annotations"][0]["segmentations"].__setitem__(2, [[1, 2]]),
            r"annotations\[0\].segmentations\[2\]: a polygon",
        ),
        (lambda d: d["annotations"][0].update(areas=["x"]), r"annotations\[0\].areas"),
        (lambda d: d["annotations"][0].update(occlusion=["much"]), "got 'much'"),
        (lambda d: d["annotations"][0].update(occlusion=[None]), "null in every frame"),
        (
            lambda d: d["annotations"].append(
                dict(d["annotations"][0], id=2, occlusion=["no_occlusion"])
            ),
            r"annotations\[0\] has no 'occlusion'",
        ),
    ],
)
def test_malformed_truth_is_refused_with_its_place(change, message):
    with pytest.raises(ValueError, match=message):
        truth_file.read(broken(change))


def test_compat_takes_truth_as_the_official_evaluator_does():
    data = minimal()
    data["annotations"].append(dict(data["annotations"][0], category_id=77, id=3))
    data["annotations"][0]["id"] = 0
    data["annotations"][0]["segmentations"] = [rle(1)]
    truth = truth_file.read(data, compat=True)
    assert truth.videos[4].instance_ids.tolist() == [0]
    assert len(truth_file.read(dict(data, annotations=None), compat=True).videos[4]) == 0


def test_a_file_that_is_missing_or_cut_short_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        truth_file.read(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text('{"videos": [')
    with pytest.raises(ValueError, match=r"half\.json is not valid JSON"):
        truth_file.read(tmp_path / "half.json")
