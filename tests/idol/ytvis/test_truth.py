"""The truth that scoring sees: areas, occlusion, what is left out, and what compat keeps."""

import copy
import json
from typing import Any

import numpy as np
import pytest

from idol.ytvis import truth as truth_file
from tests.idol.ytvis.test_annotations import SIZE, minimal, rle


def changed(**fields: Any) -> dict[str, Any]:
    """The minimal file with other fields of its annotation; a field that is ... is taken away."""
    data = minimal()
    row = data["annotations"][0] | fields
    data["annotations"][0] = {key: value for key, value in row.items() if value is not ...}
    return data


def video(data: dict[str, Any], **options: bool) -> truth_file.VideoTruth:
    return truth_file.read(data, **options).videos[4]


def test_truth_is_read_from_a_path_and_from_parsed_json(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(minimal()))
    for source in (path, str(path), minimal()):
        truth = truth_file.read(source)
        assert truth.categories == {2: "cat", 9: "fish"}
        assert truth.names == {4: "v"}
        video = truth.videos[4]
        assert video.file_names == ("v/a.jpg", "v/b.jpg", "v/c.jpg")
        assert (video.size, video.length, len(video)) == ((8, 10), 3, 1)
        assert video.areas.tolist() == [[8, 16, 0]]
        assert video.average_areas.tolist() == [12.0]
        assert video.occlusion is None
    assert truth_file.read(truth) is truth


def test_stated_areas_win_over_the_masks_and_null_or_zero_entries_do_not_count():
    assert video(changed(areas=[100, 0, None])).average_areas.tolist() == [100.0]
    assert video(changed(areas=...)).average_areas.tolist() == [12.0]


def test_occlusion_is_the_mean_of_the_upper_half_of_the_frames():
    # Present: 0, 0.75, 0.25; the two highest of three: (0.75 + 0.25) / 2.
    words = ["no_occlusion", "severe_occlusion", "slight_occlusion", None]
    assert video(changed(occlusion=words)).occlusion.tolist() == [0.5]


@pytest.mark.parametrize("words", [..., None, [], [None, None, None], ["much", None, None], [[1]]])
def test_occlusion_that_some_annotations_lack_was_an_error_and_is_a_warning(words, caplog):
    data = changed(occlusion=["no_occlusion", None, None])
    data["annotations"] += [dict(changed(occlusion=words)["annotations"][0], id=2)]
    assert video(data).occlusion is None
    assert "no occlusion metrics: 1 of 2 instances" in caplog.text
    del data["annotations"][0]
    caplog.clear()
    assert video(data).occlusion is None
    assert caplog.text == ""


def test_truth_from_masks_equals_truth_from_json():
    read = video(minimal())
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


@pytest.mark.parametrize("none", [..., None])
def test_a_file_whose_truth_is_withheld_is_refused(tmp_path, none):
    data = minimal()
    data["annotations"] = none
    data = {key: value for key, value in data.items() if value is not ...}
    path = tmp_path / "val.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="truth of this split is not public"):
        truth_file.read(path)
    assert len(truth_file.read(path, compat=True).videos[4]) == 0


def test_truth_without_objects_on_purpose_is_scored_and_told(tmp_path, caplog):
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({**minimal(), "annotations": []}))
    truth = truth_file.read(path)
    assert [len(video) for video in truth.videos.values()] == [0]
    assert "no object in any of 1 videos" in caplog.text


def test_a_video_that_cannot_be_read_was_an_error_for_all_and_is_left_out_alone(caplog):
    data = minimal()
    data["videos"] += [dict(data["videos"][0], id=5, height=0), dict(data["videos"][0], id=6)]
    truth = truth_file.read(data)
    assert (list(truth.videos), truth.left_out) == ([4, 6], {5})
    assert "1 of 3 videos are not scored" in caplog.text
    assert truth.leaves_out({"video_id": 5})
    assert not any(truth.leaves_out(e) for e in ({"video_id": 4}, {"video_id": [5]}, {}, 5))
    with pytest.raises(ValueError, match=r"no video with truth.*The first, video 5: height"):
        truth_file.read(dict(data, videos=data["videos"][1:2]))


def test_compat_takes_truth_as_the_official_evaluator_does(caplog):
    data = changed(id=0, segmentations=[rle(1)], areas=[-3, 5, 0], iscrowd="0")
    other = dict(data["annotations"][0], category_id=77, id=3)
    data["annotations"] += [other, dict(other, video_id=77, id=4)]
    read = video(data, compat=True)
    assert read.instance_ids.tolist() == [0]
    assert read.average_areas.tolist() == [1.0]
    assert read.crowd.tolist() == [True]  # as bool("0") is
    assert np.shape(read.areas) == (1, 3)
    assert caplog.text == ""


def test_compat_counts_a_repeated_id_as_the_last_annotation_of_it():
    data = minimal()
    again = copy.deepcopy(data["annotations"][0])
    again["segmentations"] = [rle(7)] * 3
    data["annotations"].append(again)
    assert video(data, compat=True).areas.tolist() == [[8, 8, 8]] * 2
    assert video(data).instance_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "1"}, "has id '1'"),
        ({"areas": ["x"]}, "areas must hold a number or null"),
        ({"segmentations": [[[1, 2]]] * 3}, "a polygon is a list"),
    ],
)
def test_what_even_the_official_evaluator_cannot_read_is_refused_in_compat_mode(change, message):
    with pytest.raises(ValueError, match=message):
        video(changed(**change), compat=True)


def test_a_file_that_is_missing_or_cut_short_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        truth_file.read(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text('{"videos": [')
    with pytest.raises(ValueError, match=r"half\.json is not valid JSON"):
        truth_file.read(tmp_path / "half.json")
