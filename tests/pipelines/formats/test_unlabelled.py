"""Videos without labels: every film and folder of images is a video."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines import formats
from pipelines.formats import media, unlabelled
from tests.pipelines.formats import drawn


def test_films_and_folders_below_a_folder_are_videos(tmp_path: Path) -> None:
    drawn.film(tmp_path / "films" / "one.mp4", 3)
    drawn.film(tmp_path / "films" / "two.avi", 2, (32, 48))
    drawn.images(tmp_path / "walk", [f"{t}.jpg" for t in (1, 2, 10)])
    (tmp_path / "notes.md").write_text("nothing")
    found = unlabelled.read(tmp_path)
    assert drawn.file_names(found.content) == {
        "one": ["films/one.mp4#0", "films/one.mp4#1", "films/one.mp4#2"],
        "two": ["films/two.avi#0", "films/two.avi#1"],
        "walk": ["walk/1.jpg", "walk/2.jpg", "walk/10.jpg"],
    }
    assert found.frames == tmp_path
    sizes = {v["name"]: (v["height"], v["width"]) for v in found.content["videos"]}
    assert sizes == {"one": (24, 36), "two": (32, 48), "walk": (24, 36)}
    assert "annotations" not in found.content
    (film,) = unlabelled.read(tmp_path / "films" / "one.mp4").content["videos"]
    assert film["file_names"] == ["one.mp4#0", "one.mp4#1", "one.mp4#2"]


def test_films_of_every_common_suffix_are_found_and_others_are_told(tmp_path: Path) -> None:
    drawn.film(tmp_path / "one.avi", 3)
    (tmp_path / "one.avi").rename(tmp_path / "one.DIVX")
    with av.open(str(tmp_path / "two.ts"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = 32, 24
        container.mux(stream.encode(av.VideoFrame(32, 24, "yuv420p")))
        container.mux(stream.encode())
    (tmp_path / "three.movie").write_text("")
    found = unlabelled.read(tmp_path)
    assert {name: len(files) for name, files in drawn.file_names(found.content).items()} == {
        "one": 3, "two": 1,
    }  # fmt: skip
    (kind,) = found.notes
    assert kind.startswith("files passed over")
    assert found.notes[kind].first == str(tmp_path / "three.movie")


def test_a_broken_video_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    drawn.film(tmp_path / "good.mp4", 3)
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    drawn.images(tmp_path / "mixed", ["1.jpg"])
    drawn.images(tmp_path / "mixed", ["2.jpg"], (10, 12))
    found = unlabelled.read(tmp_path)
    assert list(drawn.file_names(found.content)) == ["good"]
    told = {Path(name).name: reason for name, reason in found.left_out.items()}
    assert told["bad.mp4"].endswith("the file cannot be opened as a video")
    assert "different sizes (height x width)" in told["mixed"]


def test_a_name_that_is_not_utf_8_is_left_out_with_the_reason(tmp_path: Path) -> None:
    drawn.film(tmp_path / "good.mp4", 3)
    try:
        shutil.copy(tmp_path / "good.mp4", os.fsencode(tmp_path) + b"/v\xff.mp4")
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    joined = formats.join([unlabelled.read(tmp_path)])
    assert [video.name for video in joined.videos] == ["good"]
    (reason,) = joined.left_out.values()
    assert r"v\udcff.mp4#0' is not UTF-8" in reason
    assert "rename the file" in reason


def test_a_film_that_states_too_many_frames_has_those_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn.film(tmp_path / "a.mp4", 4)
    monkeypatch.setattr("idol.images.video_file.VideoFile.stated", 9)
    found = unlabelled.read(tmp_path)
    assert len(found.content["videos"][0]["file_names"]) == 4
    (told,) = found.notes.values()
    assert told.first.endswith("states 9 and has 4")


def test_a_film_that_states_no_number_of_frames_has_all_and_no_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn.film(tmp_path / "a.mkv", 5)
    for guess in (3, 5, 9):
        monkeypatch.setattr("pipelines.sources.frames.VideoReader.__len__", lambda _, n=guess: n)
        found = unlabelled.read(tmp_path)
        assert len(found.content["videos"][0]["file_names"]) == 5
        assert not found.notes


def test_frames_outside_the_given_root_are_refused(tmp_path: Path) -> None:
    drawn.film(tmp_path / "a.mp4", 2)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"a.mp4#0 is not in the folder of frames .*other"):
        unlabelled.read(tmp_path / "a.mp4", tmp_path / "other")


def test_a_photograph_has_the_size_in_which_it_is_shown(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((24, 36, 3), np.uint8))
    turned = Image.Exif()
    turned[274] = 6
    image.save(tmp_path / "1.jpg", exif=turned)
    shown = cv2.imread(str(tmp_path / "1.jpg"))
    assert media.Frames(tmp_path).size([0]) == shown.shape[:2] == (36, 24)


@pytest.mark.parametrize(
    ("asked", "index"), [("frame_0002", 1), ("2", 1), ("000010", 2), ("shot2_10", 2)]
)
def test_a_frame_is_found_by_name_or_else_by_number(tmp_path: Path, asked: str, index: int) -> None:
    drawn.images(tmp_path, ["frame_0001.jpg", "frame_0002.jpg", "frame_0010.jpg"])
    found = media.Frames(tmp_path)
    assert found.find(asked) == index
    for missing in ("frame_0003", "cover", ""):
        with pytest.raises(ValueError, match=f"there is no frame {missing} in .* has 3 frames"):
            found.find(missing)


def test_numbers_that_repeat_say_nothing(tmp_path: Path) -> None:
    drawn.images(tmp_path, ["left_1.jpg", "right_1.jpg"])
    found = media.Frames(tmp_path)
    assert found.find("right_1") == 1
    with pytest.raises(ValueError, match="there is no frame 1"):
        found.find("1")
