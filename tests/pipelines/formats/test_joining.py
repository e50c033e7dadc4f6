"""Sets are united by the names of categories, and divided by video with all categories in both."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idol.ytvis.videos import Instance, Video
from pipelines import formats
from pipelines.formats import Joined, Labels, joining, writing
from tests.pipelines.conftest import Videos, rectangle
from tests.pipelines.formats import drawn


def labels(videos: Videos, content: Any = None) -> Labels:
    return Labels("a.json", content or videos.content, videos.folder / "JPEGImages")


def test_one_source_keeps_its_ids(make_videos: Callable[..., Videos]) -> None:
    videos = make_videos([3, 2])
    joined = formats.join([labels(videos)])
    assert joined.categories == {3: "person", 7: "car"}
    assert [v.video_id for v in joined.videos] == [1, 2]
    assert [i.instance_id for v in joined.videos for i in v.instances] == [11, 12, 21, 22]
    assert joined.frames == videos.folder / "JPEGImages"


def test_categories_of_one_name_are_one(make_videos: Callable[..., Videos]) -> None:
    one, two = make_videos([3], "one"), make_videos([2, 2], "two")
    two.content["categories"] = [{"id": 7, "name": "person"}, {"id": 9, "name": "car"}]
    for row in two.content["annotations"]:
        row["category_id"] = {7: 9, 3: 7}[row["category_id"]]
    two.content["categories"].append({"id": 1, "name": "tram"})
    joined = formats.join([labels(one), labels(two)])
    assert joined.categories == {1: "person", 2: "car", 3: "tram"}
    assert [v.video_id for v in joined.videos] == [1, 2, 3]
    assert [i.instance_id for v in joined.videos for i in v.instances] == [1, 2, 3, 4, 5, 6]
    assert [i.category_id for v in joined.videos for i in v.instances] == [2, 1] * 3
    assert joined.notes["categories of one name, merged"] == (2, "a.json: person")
    # Frames are named from the folder that holds both.
    assert joined.frames == one.folder.parent
    assert joined.videos[1].file_names == ("two/JPEGImages/v1/000.jpg", "two/JPEGImages/v1/001.jpg")
    for video in joined.videos:
        assert all((joined.frames / name).is_file() for name in video.file_names or ())


def test_a_video_that_is_there_twice_is_told(make_videos: Callable[..., Videos]) -> None:
    source = labels(make_videos([3, 2]))
    joined = formats.join([source, source])
    assert len(joined.videos) == 4
    assert joined.notes["videos of the same frames as another, kept"] == (2, "video 3")
    assert not formats.join([source]).notes


def test_what_is_left_out_and_repaired_is_known(make_videos: Callable[..., Videos]) -> None:
    videos = make_videos([3, 2, 2, 2])
    videos.content["annotations"][0]["category_id"] = 99
    videos.content["annotations"][2]["iscrowd"] = True
    videos.content["videos"][2]["file_names"][1] = "../secret.jpg"
    del videos.content["videos"][3]["file_names"]
    source = Labels("a.json", videos.content, videos.folder, left_out={"film": "it is broken"})
    source.notes.add("boxes, left out", "v1", 4)
    joined = formats.join([source])
    assert [v.video_id for v in joined.videos] == [2]
    assert list(joined.left_out) == ["a.json: film", *(f"a.json: video {n}" for n in (1, 3, 4))]
    told = " ".join(joined.left_out.values())
    for reason in ("it is broken", "category_id 99", "../secret.jpg leaves", "names no frames"):
        assert reason in told
    assert joined.notes == {"boxes, left out": (4, "a.json: v1")}
    assert list(joined.repairs) == ["odd ways to write iscrowd, taken as 0 or 1"]


def test_a_source_without_a_usable_video_is_an_error(make_videos: Callable[..., Videos]) -> None:
    videos = make_videos([2])
    videos.content["videos"][0]["width"] = 0
    with pytest.raises(ValueError, match=r"a.json has no video that can be used: video 1: width"):
        formats.join([labels(videos)])


def test_labels_and_no_labels_are_not_mixed(make_videos: Callable[..., Videos]) -> None:
    videos = make_videos([2])
    bare = {"videos": videos.content["videos"]}
    assert formats.join([labels(videos, bare)] * 2).labelled is False
    with pytest.raises(ValueError, match="some sources have annotations and others none"):
        formats.join([labels(videos), labels(videos, bare)])


def entries(videos: Videos) -> list[dict[str, Any]]:
    """Results: the truth, under a score of 0.9 for cars and 0.2 for people."""
    return [
        {
            "video_id": row["video_id"],
            "category_id": row["category_id"],
            "score": 0.9 if row["category_id"] == 7 else 0.2,
            "segmentations": row["segmentations"],
        }
        for row in videos.content["annotations"]
    ]


def test_results_take_the_place_of_the_truth(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = make_videos([3, 2])
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries(videos)))
    joined = joining.with_results(formats.join([labels(videos)]), path)
    formats.write(joined, tmp_path / "out.json", "ytvis")
    written = json.loads((tmp_path / "out.json").read_text())
    assert drawn.objects(written) == drawn.objects(videos.content)
    assert [row["score"] for row in written["annotations"]] == [0.9, 0.2, 0.9, 0.2]
    best = joining.with_results(formats.join([labels(videos)]), path, 0.5)
    assert [i.category_id for v in best.videos for i in v.instances] == [7, 7]
    assert best.notes["entries with a score below 0.5, left out"] == (2, "results[1]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 5}, r"results\[0\] has video_id 5"),
        ({"category_id": 5}, r"results\[0\] has category_id 5"),
        ({"segmentations": [None]}, r"results\[0\].segmentations has 1 entries"),
        ({"score": "high"}, r"results\[0\].score must be a number"),
        ({"segmentations": [{"size": [24, 36], "counts": "1"}] * 3}, "no readable RLE"),
    ],
)
def test_results_of_something_else_are_refused(
    make_videos: Callable[..., Videos], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    videos = make_videos([3])
    rows = entries(videos)
    rows[0] |= change
    (tmp_path / "results.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        joining.with_results(formats.join([labels(videos)]), tmp_path / "results.json")


def test_results_of_unlabelled_videos_have_the_numbers_of_their_classes(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = make_videos([3])
    (tmp_path / "results.json").write_text(json.dumps(entries(videos)))
    joined = formats.join([labels(videos, {"videos": videos.content["videos"]})])
    found = joining.with_results(joined, tmp_path / "results.json")
    assert found.categories == {3: "3", 7: "7"}
    assert found.labelled


def of_categories(*inside: set[int]) -> Joined:
    """Videos with instances of these categories."""
    mask = drawn.counts(drawn.box(1, 1, 4, 4))
    videos = []
    for number, categories in enumerate(inside, 1):
        instances = tuple(
            Instance(100 * number + c, c, False, ({"size": [24, 36], "counts": mask},))
            for c in categories
        )
        areas = drawn.np.full((len(instances), 1), 9)
        videos.append(Video(number, (24, 36), 1, (f"{number}/0.jpg",), "", instances, areas))
    names = {c: f"c{c}" for c in sorted(set().union(*inside))}
    return Joined(names, videos, Path("/frames"), True)


def ids(part: Joined) -> list[int]:
    return [video.video_id for video in part.videos]


def test_a_split_is_by_video_and_by_seed() -> None:
    joined = of_categories(*[{1}] * 20)
    train, held_out = formats.split(joined, 0.8, 0)
    assert (len(train.videos), len(held_out.videos)) == (16, 4)
    assert sorted(ids(train) + ids(held_out)) == list(range(1, 21))
    assert ids(formats.split(joined, 0.8, 0)[1]) == ids(held_out)
    assert any(ids(formats.split(joined, 0.8, s)[1]) != ids(held_out) for s in (1, 2, 3))
    assert train.categories == held_out.categories


@given(st.integers(0, 1000))
def test_a_rare_category_is_in_both_parts(seed: int) -> None:
    joined = of_categories(*[{1}] * 16, {1, 2}, {2}, {1, 3}, {3, 1})
    for part in formats.split(joined, 0.8, seed):
        assert {i.category_id for v in part.videos for i in v.instances} == {1, 2, 3}
        assert not part.notes


def test_a_category_that_cannot_be_in_both_is_told() -> None:
    train, _ = formats.split(of_categories({1, 2}, {1}, {1}, {1}), 0.5, 0)
    assert train.notes == {"categories in one part alone": (1, "c2")}
    # Two categories in two videos each, and room for one held out: one of them goes without.
    train, held_out = formats.split(of_categories({1}, {1}, {2}, {2}), 0.9, 0)
    assert (len(train.videos), len(held_out.videos)) == (3, 1)
    assert train.notes["categories in one part alone"].times == 1


@pytest.mark.parametrize(("share", "videos"), [(0.0, 3), (1.0, 3), (-0.5, 3), (1.5, 3), (0.5, 1)])
def test_a_split_leaves_something_on_both_sides(share: float, videos: int) -> None:
    with pytest.raises(ValueError, match=f"two videos or more, got {share} and {videos}"):
        formats.split(of_categories(*[{1}] * videos), share, 0)


def test_both_parts_of_any_share_hold_a_video() -> None:
    for share in (0.01, 0.5, 0.99):
        assert all(part.videos for part in formats.split(of_categories({1}, {1}), share, 0))


def test_the_second_part_does_not_repeat_what_the_first_tells(
    make_videos: Callable[..., Videos],
) -> None:
    videos = make_videos([2, 2])
    content = copy.deepcopy(videos.content)
    content["annotations"][0]["segmentations"] = [rectangle(0, 0, 0, 0)] * 2
    train, held_out = formats.split(formats.join([labels(videos, content)]), 0.5, 0)
    assert train.repairs
    assert not held_out.repairs
    assert writing.WRITERS == ("ytvis", "cocovid", "mots", "png")
