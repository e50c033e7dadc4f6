"""CVAT for video: polygons and masks of tracks, frames of films and folders, and bad XML."""

from __future__ import annotations

from pathlib import Path

import pytest

from idol.masks import rle
from pipelines.formats import cvat
from tests.pipelines.formats import drawn

HEIGHT, WIDTH = drawn.SIZE
META = (
    "<task><name>t</name><size>{size}</size><start_frame>{start}</start_frame>{more}"
    "<labels><label><name>car</name></label><label><name>dog</name></label></labels>"
    f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size></task>"
)


def polygon(frame: int, points: str = "2,3;9,3;9,12;2,12", more: str = 'outside="0"') -> str:
    return (
        f'<polygon frame="{frame}" keyframe="1" {more} occluded="0" points="{points}" z_order="0"/>'
    )


def mask(frame: int, rle: str = "1,3,2,3,1,2", box: str = "4 5 4 3", outside: int = 0) -> str:
    """Runs of a mask in its box: left top width height."""
    left, top, width, height = box.split()
    return (
        f'<mask frame="{frame}" outside="{outside}" rle="{rle}" left="{left}" top="{top}" '
        f'width="{width}" height="{height}"/>'
    )


def track(shapes: str, label: str = "car", number: int = 0) -> str:
    return f'<track id="{number}" label="{label}" source="manual">{shapes}</track>'


def write(path: Path, tracks: str, *, size: int = 4, start: int = 0, more: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = META.format(size=size, start=start, more=more)
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f"<meta>{meta}<dumped>today</dumped><source>seen.mp4</source></meta>{tracks}</annotations>"
    )
    return path


def test_polygons_and_masks_become_tracks_of_a_film(tmp_path: Path) -> None:
    drawn.film(tmp_path / "seen.mp4", 4)
    outside = polygon(3, more='outside="1"')
    tracks = track(polygon(1) + polygon(2) + outside) + track(mask(0), "dog", 1)
    found = cvat.read(write(tmp_path / "mine.xml", tracks))
    assert found.frames == tmp_path
    assert drawn.file_names(found.content) == {"mine": [f"seen.mp4#{t}" for t in range(4)]}
    ((car, boxes), (dog, runs)) = drawn.objects(found.content)["mine"]
    assert (car, dog) == ("car", "dog")
    drawn_box = drawn.counts(drawn.box(2, 3, 9, 12))
    assert boxes == [None, drawn_box, drawn_box, None]
    # Row by row from 4, 5: .### / ..## / #.## by runs of 1, 3, 2, 3, 1, 2.
    (picture,) = rle.decode_masks([runs[0]], drawn.SIZE)
    assert picture[5:8, 4:8].tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 1]]
    assert picture.sum() == 8
    assert found.notes == {}


def test_several_polygons_of_a_frame_are_one_mask(tmp_path: Path) -> None:
    drawn.film(tmp_path / "seen.mp4", 4)
    both = polygon(0) + polygon(0, "20,3;29,3;29,12;20,12")
    found = cvat.read(write(tmp_path / "mine.xml", track(both)))
    ((_, masks),) = drawn.objects(found.content)["mine"]
    expected = drawn.box(2, 3, 9, 12) | drawn.box(20, 3, 29, 12)
    assert masks[0] == drawn.counts(expected)


def test_a_box_is_no_mask(tmp_path: Path) -> None:
    drawn.film(tmp_path / "seen.mp4", 4)
    boxes = "".join(
        f'<box frame="{t}" outside="0" xtl="1" ytl="1" xbr="5" ybr="5"/>' for t in (0, 1)
    )
    found = cvat.read(write(tmp_path / "mine.xml", track(boxes, number=7) + track(polygon(0))))
    assert found.notes["shapes that are a box, left out (that is no mask)"] == (2, "mine, track 7")
    assert len(found.content["annotations"]) == 1


def test_labels_that_the_task_does_not_list_are_told(tmp_path: Path) -> None:
    drawn.film(tmp_path / "seen.mp4", 4)
    found = cvat.read(write(tmp_path / "mine.xml", track(polygon(0), "cat")))
    assert drawn.objects(found.content)["mine"][0][0] == "cat"
    assert (
        found.notes["labels of tracks that the task does not list, taken as they are"].first
        == "cat"
    )


@pytest.mark.parametrize("more", ["<frame_filter/>", "<frame_filter>step=0</frame_filter>"])
def test_a_filter_that_says_nothing_is_none(tmp_path: Path, more: str) -> None:
    drawn.film(tmp_path / "seen.mp4", 4)
    found = cvat.read(write(tmp_path / "mine.xml", track(polygon(3)), more=more))
    assert len(drawn.file_names(found.content)["mine"]) == 4


@pytest.mark.parametrize("all_images", [True, False])
def test_a_task_may_begin_later_and_use_each_third_frame(tmp_path: Path, all_images: bool) -> None:
    more = "<frame_filter>step=3</frame_filter>"
    tracks = track(polygon(2) + polygon(8))
    root = tmp_path / "export"
    path = write(root / "annotations.xml", tracks, size=3, start=2, more=more)
    names = [f"frame_{t:06d}.PNG" for t in (range(10) if all_images else (2, 5, 8))]
    drawn.images(root / "images", names)
    for source in (path, root):
        found = cvat.read(source)
        numbers = [int(name[-10:-4]) for name in drawn.file_names(found.content)["export"]]
        assert numbers == [2, 5, 8]
        ((_, masks),) = drawn.objects(found.content)["export"]
        assert [m is not None for m in masks] == [True, False, True]


def test_a_film_is_never_taken_for_the_frames_of_the_task(tmp_path: Path) -> None:
    drawn.film(tmp_path / "seen.mp4", 4)  # as many frames as the task has, which began at 2
    with pytest.raises(ValueError, match="the last number 5, but there are 4 images or film"):
        cvat.read(write(tmp_path / "mine.xml", track(polygon(2)), start=2))


def test_frames_lie_where_it_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.xml", track(polygon(0)))
    with pytest.raises(
        FileNotFoundError, match=r"film or images were not found as .*images.*--frames"
    ):
        cvat.read(path)
    drawn.film(tmp_path / "elsewhere" / "other.avi", 4)
    drawn.images(tmp_path / "pictures", [f"{t}.jpg" for t in (1, 2, 10, 20)])
    films = cvat.read(path, tmp_path / "elsewhere" / "other.avi")
    assert drawn.file_names(films.content)["mine"][1] == "other.avi#1"
    pictures = cvat.read(path, tmp_path / "pictures")
    stems = [Path(name).stem for name in drawn.file_names(pictures.content)["mine"]]
    assert stems == ["1", "2", "10", "20"]
    assert drawn.objects(films.content) == drawn.objects(pictures.content)


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;">]><annotations>&c;</annotations>"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotations><meta>", r"is not XML \(no element found"),
        ("", "is not XML"),
        ("{}", "is not XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotations/>', "unknown encoding: klingon"),
        (BOMB, "has a DOCTYPE, which CVAT does not write"),
        (BOMB.encode("utf-16"), "has a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "has a DOCTYPE"),
        ("<annotations/>", "no 'CVAT for video 1.1' of one task"),
        ("<svg><meta><task/></meta></svg>", "no 'CVAT for video 1.1'"),
        ('<annotations><meta><task/></meta><image id="0"/></annotations>', "'CVAT for images'"),
        ("<annotations><meta><project/></meta></annotations>", "whole project"),
    ],
)
def test_what_is_no_export_of_a_video_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=reason):
        cvat.read(path)


@pytest.mark.parametrize(
    ("tracks", "reason"),
    [
        (track(polygon(4)), "track 0 has a shape on frame '4', of 4 frames from 0 on"),
        (track(polygon(0).replace('frame="0"', "")), "a shape on frame ''"),
        (track(polygon(0), ""), "track 0 has no label"),
        (track(polygon(0, "1,2;x,3")), "track 0, frame 0: could not convert"),
        (track(polygon(0) + mask(0)), "track 0 has two masks on frame 0"),
        (track(mask(0, "5,5")), r"frame 0: runs add up to 10 pixels, 4 x 3 are needed"),
        (track(mask(0, "-1,13")), "leaves the frame"),
        (track(mask(0, box="34 5 4 3")), "the mask at 34, 5 of 4 x 3 leaves the frame"),
        (track(mask(0, "a,b")), "frame 0: invalid literal"),
        (track('<mask frame="0" rle="1"/>'), "frame 0: the mask has no attribute 'left'"),
        (track('<polygon frame="0"/>'), "track 0, frame 0: the polygon has no points"),
        (track(polygon(0, "")), "track 0, frame 0: the polygon has no points"),
    ],
)
def test_a_fault_of_a_track_is_named(tmp_path: Path, tracks: str, reason: str) -> None:
    drawn.film(tmp_path / "seen.mp4", 4)
    with pytest.raises(ValueError, match=f"no video that can be used: mine: .*{reason}"):
        cvat.read(write(tmp_path / "mine.xml", tracks))


def test_a_film_of_another_length_or_size_is_refused(tmp_path: Path) -> None:
    drawn.film(tmp_path / "seen.mp4", 3)
    path = write(tmp_path / "mine.xml", track(polygon(0)))
    with pytest.raises(ValueError, match=r"4 frames, the last number 3, but there are 3 images"):
        cvat.read(path)
    drawn.film(tmp_path / "seen.mp4", 4, (32, 48))
    with pytest.raises(ValueError, match=r"the XML says 24 x 36 .* are 32 x 48"):
        cvat.read(path)
    write(path, track(polygon(0)), start=-1)
    with pytest.raises(ValueError, match="<start_frame> must be a whole number, got '-1'"):
        cvat.read(path)
