"""A path is recognised by what lies there, and is never taken for another format in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import formats
from pipelines.errors import DatasetError
from pipelines.formats import Labels, recognition
from pipelines.sources import annotations
from tests.pipelines.conftest import Videos
from tests.pipelines.formats import drawn

LINE = f"0 1000 1 24 36 {drawn.counts(drawn.box(1, 1, 4, 4)).decode()}\n"


@pytest.mark.parametrize(
    ("files", "path", "format"),
    [
        (["mine.json"], "mine.json", "json"),
        (["instances.json", "JPEGImages/a/1.jpg", "README.txt"], "", "json"),
        (["Annotations/a/1.png", "JPEGImages/a/1.jpg", "meta.json"], "", "masks"),
        (["Annotations/480p/a/1.png"], "Annotations/480p", "masks"),
        (["Annotations/film.mp4"], "Annotations", "videos"),
        (["instances/a/1.png"], "", "mots"),
        (["instances_txt/a.txt"], "", "mots"),
        (["a/gt/gt.txt", "a/img1/1.jpg"], "", "mots"),
        (["a.txt"], "a.txt", "mots"),
        (["a.txt", "images/a/1.jpg"], "", "mots"),
        (["annotations.xml", "images/1.png"], "", "cvat"),
        (["mine.XML"], "mine.XML", "cvat"),
        (["v_manual.json", "v.mp4"], "", "sav"),
        (["v_auto.json", "w_auto.json"], "", "sav"),
        (["a.MP4"], "a.MP4", "videos"),
        (["a.mp4", "b/1.jpg"], "", "videos"),
        (["deep/er/1.png"], "", "videos"),
    ],
)
def test_formats_are_recognised(tmp_path: Path, files: list[str], path: str, format: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("hello" if "README" in name else LINE)
    assert recognition.recognise(tmp_path / path) == format


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ([], "", "is of no format that is known. Say which: --format json | masks"),
        (["a.zip"], "a.zip", "no format that is known; unpack it first"),
        (["1.jpg"], "1.jpg", "no format"),
        (["Annotations/a/1.png", "annotations.xml"], "", "looks like masks and cvat"),
        (["train.json", "val.json", "a/1.jpg"], "", r"2 JSON files \(train.json, val.json\); name"),
    ],
)
def test_what_is_unclear_is_asked(
    tmp_path: Path, files: list[str], path: str, message: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        formats.read(tmp_path / path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        formats.read(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"the frames .*nothing do not exist"):
        formats.read(tmp_path, tmp_path / "nothing")


def test_json_is_read_with_the_frames_beside_it(make_videos: Callable[..., Videos]) -> None:
    videos = make_videos([2])
    for source in (videos.write(), videos.folder):
        found = formats.read(source)
        assert found.frames == videos.folder / "JPEGImages"
        assert found.content == videos.content
    assert formats.read(videos.write(), videos.folder).frames == videos.folder


def test_sa_v_is_known_by_its_content(tmp_path: Path) -> None:
    drawn.film(tmp_path / "v.mp4", 2)
    mask = {"size": list(drawn.SIZE), "counts": drawn.counts(drawn.box(1, 1, 4, 4)).decode()}
    (tmp_path / "any.json").write_text(json.dumps({"video_id": "v", "masklet": [[mask]]}))
    assert drawn.file_names(formats.read(tmp_path / "any.json").content) == {"v": ["v.mp4#0"]}
    (tmp_path / "any.json").write_text("[]")
    with pytest.raises(ValueError, match="is no annotation file: its top level is no object"):
        formats.read(tmp_path / "any.json")


def test_jobs_read_other_formats_as_what_convert_makes_of_them(
    make_videos: Callable[..., Videos], tmp_path: Path
) -> None:
    videos = make_videos([3, 4])
    joined = formats.join([Labels("set", videos.content, videos.folder / "JPEGImages")])
    formats.write(joined, tmp_path / "labels", "png")
    straight = formats.dataset(tmp_path / "labels", videos.folder / "JPEGImages")
    back = formats.join([formats.read(tmp_path / "labels", videos.folder / "JPEGImages")])
    formats.write(back, tmp_path / "back.json", "ytvis")
    converted = annotations.read(tmp_path / "back.json", back.frames)
    assert list(straight.videos) == list(converted.videos)
    assert straight.categories == converted.categories
    assert straight.frames == converted.frames
    again = formats.dataset(tmp_path / "labels", videos.folder / "JPEGImages")
    assert straight.input_hash == again.input_hash != converted.input_hash
    one = formats.dataset(tmp_path / "labels", videos.folder / "JPEGImages", video_ids=[2])
    assert [v.video_id for v in one.videos] == [2]


def test_jobs_read_videos_without_labels_and_say_which_they_cannot(tmp_path: Path) -> None:
    drawn.film(tmp_path / "films" / "a.mp4", 5)
    drawn.images(tmp_path / "films" / "b", ["0.png", "1.png"])
    (tmp_path / "films" / "c.mp4").write_bytes(b"no film")
    found = formats.dataset(tmp_path / "films")
    assert [(v.name, len(v)) for v in found.videos] == [("a", 5), ("b", 2)]
    assert found.truth() is None
    ((video_id, path, reason),) = found.rejects
    assert (video_id, Path(path).name) == (3, "c.mp4")
    assert reason == "the file cannot be opened as a video"


def test_what_is_of_no_format_is_refused_as_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"unpack it first.*jobs\.convert"):
        formats.dataset(tmp_path / "set.zip")
    with pytest.raises(DatasetError, match="cannot be read"):
        formats.dataset(tmp_path / "not there.json")
