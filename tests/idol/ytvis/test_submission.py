"""Submissions: what a server would refuse is said, all of it; the rest is zipped as it is."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from idol.ytvis import submission
from tests.idol.analysis.test_clips import SIZE, entry, moving, strip

VIDEOS = submission.VideoList({1: (SIZE, 3), 2: (SIZE, 3)}, (1, 2))


def put(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_valid_file_is_zipped_byte_for_byte(tmp_path: Path) -> None:
    path = put(tmp_path / "mine.json", [entry(0.9, moving(3, 0)), entry(0.1, [None] * 3)])
    done = submission.write(path, tmp_path / "out.zip", VIDEOS)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["results.json"]
        assert archive.read("results.json") == path.read_bytes()
        assert archive.infolist()[0].compress_size < archive.infolist()[0].file_size
        assert archive.testzip() is None
    assert (done.entries, done.videos, done.missing_videos, done.crowded) == (2, 1, (2,), ())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "out.zip"]


def test_equal_files_give_equal_zips(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", [entry(0.9, moving(3, 0))])
    for name in ("1.zip", "2.zip"):
        submission.write(path, tmp_path / name)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 7}, "has video_id 7, which the truth does not know"),
        ({"video_id": "1"}, "video_id must be a whole number, got '1'"),
        ({"category_id": 9}, "has category_id 9, but the truth has 1, 2"),
        ({"category_id": True}, "category_id must be a whole number, got True"),
        ({"score": float("nan")}, "score must be finite, got nan"),
        ({"score": float("inf")}, "score must be finite, got inf"),
        ({"score": None}, "score must be a number, got None"),
        ({"segmentations": None}, "segmentations must be a list with one mask or null per frame"),
        ({"segmentations": [None] * 2}, "segmentations has 2 entries, but video 1 has 3 frames"),
        ({"first_frame": 0}, "has 'first_frame': a prediction of a clip"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_with_its_index(
    change: dict[str, Any], message: str
) -> None:
    rows = [entry(0.9, moving(3, 0)), {**entry(0.9, moving(3, 0)), **change}]
    (problem,) = submission.problems(rows, VIDEOS)
    assert problem.startswith("results[1]")
    assert message in problem


def test_every_problem_is_listed() -> None:
    small = {"size": [1, 39], "counts": strip(0, 3)["counts"]}
    broken = {"size": list(SIZE), "counts": "5"}
    polygon = [[0, 0, 1, 0, 1, 1]]
    rows = [
        entry(float("nan"), [small, None, broken]),
        7,
        entry(0.5, [None, polygon, strip(0, 3)], video_id=2),
        entry(0.5, moving(3, 0), video_id=2),
        entry(0.5, moving(3, 0), category_id=0),
    ]
    found = submission.problems(rows, VIDEOS)
    assert [line.split(" ")[0] for line in found] == [
        "results[0].score",
        "results[0].segmentations[0]",
        "results[0].segmentations[2]",
        "results[1]",
        "results[2].segmentations[1]",
        "results[4]",
    ]


def test_without_a_list_of_videos_the_first_entry_of_each_counts() -> None:
    rows = [
        entry(0.5, [None, None, None], video_id=1234),
        entry(0.5, moving(3, 0), video_id=1234),
        entry(0.5, moving(2, 0), video_id=1234),
        entry(0.5, moving(2, 0), video_id=5, category_id=77),
        entry(0.5, [None, {"size": [1, 50], "counts": "b0b0"}], video_id=5),
    ]
    found = submission.problems(rows)
    assert "results[2].segmentations has 2 entries, but video 1234 has 3 frames" in found[0]
    assert "results[4].segmentations[1] has size [1, 50]" in found[1]
    assert len(found) == 2


def test_nothing_is_written_where_anything_is_wrong(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", [entry(0.9, [None]), entry(0.9, [None] * 2)])
    with pytest.raises(submission.InvalidResults) as error:
        submission.write(path, tmp_path / "out.zip", VIDEOS)
    assert len(error.value.problems) == 2
    assert str(error.value).startswith("2 problems, nothing was written:\nresults[0]")
    assert not (tmp_path / "out.zip").exists()


def test_an_empty_list_is_refused_as_the_official_evaluator_does() -> None:
    assert submission.problems([]) == [
        "results is an empty list, which the official evaluator refuses"
    ]


def test_more_entries_than_count_are_said(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", [entry(0.9, moving(3, 0))] * 101)
    assert submission.write(path, tmp_path / "out.zip").crowded == ((1, 1),)


def test_a_public_test_split_has_a_list_of_videos(tmp_path: Path) -> None:
    data = {
        "videos": [{"id": 4, "height": 5, "width": 6, "file_names": ["a/0.jpg", "a/1.jpg"]}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": None,
    }
    found = submission.read_videos(put(tmp_path / "test.json", data))
    assert found == submission.VideoList({4: ((5, 6), 2)}, (3,))
    with pytest.raises(ValueError, match="is not YouTube-VIS: the top level is a list"):
        submission.read_videos(put(tmp_path / "list.json", []))
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        submission.read_videos(tmp_path / "none.json")
