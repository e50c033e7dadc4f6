"""MOTS: PNG of 16 bits and text say the same, by frame numbers, and faults name file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.formats import mots
from tests.pipelines.formats import drawn

CAR, PERSON = drawn.box(2, 3, 9, 12), drawn.box(20, 5, 30, 20)
EXPECTED = [
    ("car", [drawn.counts(CAR)] * 3),
    ("pedestrian", [None, *[drawn.counts(PERSON)] * 2]),
]
HEIGHT, WIDTH = drawn.SIZE


def line(frame: int, number: int, label: int, mask: bytes) -> str:
    return f"{frame} {number} {label} {HEIGHT} {WIDTH} {mask.decode()}\n"


def lines(first: int) -> str:
    """Two objects and a region to ignore on three frames; the person comes with the second."""
    return "".join(
        line(first + t, 1000, 1, drawn.counts(CAR))
        + line(first + t, 10000, 10, drawn.counts(drawn.box(0, 20, 36, 24)))
        + (line(first + t, 2003, 2, drawn.counts(PERSON)) if t else "")
        for t in range(3)
    )


@pytest.fixture(params=["kitti png", "kitti text", "challenge", "one file", "flat"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same sequence 0002 in every layout; KITTI counts frames from 0, MOTSChallenge from 1."""
    root = tmp_path / "set"
    first = int(request.param == "challenge")
    names = [f"{first + t:06d}.{'jpg' if first else 'png'}" for t in range(3)]
    if request.param == "challenge":
        drawn.images(root / "0002" / "img1", names)
        (root / "0002" / "gt").mkdir()
        (root / "0002" / "gt" / "gt.txt").write_text(lines(first))
        return root
    drawn.images(root / "training" / "image_02" / "0002", names)
    if request.param == "kitti png":
        for t, name in enumerate(names):
            ids = CAR * 1000 + drawn.box(0, 20, 36, 24) * 10000 + (PERSON * 2003 if t else 0)
            drawn.png(root / "instances" / "0002" / name, ids, "I;16")
        return root
    folder = root / "instances_txt" if request.param == "kitti text" else root
    folder.mkdir(exist_ok=True)
    (folder / "0002.txt").write_text(lines(first))
    return root / "0002.txt" if request.param == "one file" else root


def test_every_layout_gives_the_same_objects(root: Path) -> None:
    found = mots.read(root)
    assert drawn.objects(found.content) == {"0002": EXPECTED}
    assert found.left_out == {}
    assert list(found.notes) == [
        "ignore regions, left out (what is found there will count as wrong)"
    ]
    ((times, first),) = found.notes.values()
    assert (times, first) == (3, "0002")
    assert all((found.frames / name).is_file() for name in drawn.file_names(found.content)["0002"])


def test_frames_lie_where_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(lines(7))
    told = "no folder of images or film a in {}.* called like .*: rename a.txt so, or .*--frames"
    for frames in (None, tmp_path / "films"):
        with pytest.raises(ValueError, match=told.format(frames or tmp_path)):
            mots.read(tmp_path / "a.txt", frames)
    drawn.film(tmp_path / "films" / "a.mp4", 10)
    found = mots.read(tmp_path / "a.txt", tmp_path / "films")
    assert drawn.file_names(found.content)["a"][7] == "a.mp4#7"
    car = dict(drawn.objects(found.content)["a"])["car"]
    assert [t for t, mask in enumerate(car) if mask] == [7, 8, 9]


def test_other_classes_have_their_names_in_a_file(tmp_path: Path) -> None:
    drawn.images(tmp_path / "images" / "a", ["0.jpg"])
    (tmp_path / "a.txt").write_text(line(0, 3001, 3, drawn.counts(CAR)))
    with pytest.raises(ValueError, match=r"line 1 is of class 3, which is unknown \(known: 1 car"):
        mots.read(tmp_path)
    (tmp_path / "labels.txt").write_text("\n\nzebra\n")
    assert drawn.objects(mots.read(tmp_path).content)["a"][0][0] == "zebra"


def test_pictures_without_a_file_leave_the_video_and_are_counted(tmp_path: Path) -> None:
    drawn.images(tmp_path / "images" / "a", [f"{t}.jpg" for t in range(4)])
    drawn.png(tmp_path / "instances" / "a" / "2.png", CAR * 1000, "I;16")
    found = mots.read(tmp_path)
    assert drawn.file_names(found.content) == {"a": ["a/2.jpg"]}
    assert found.notes["frames without a mask file, left out of their video"] == (3, "a")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 1000 1 24 36\n", "line 1 is not `frame id class height width rle`: '0 1000 1 24 36'"),
        ("0,1000,1,24,36,x\n", "line 1 is not"),
        ("0 -1 1 24 36 x\n", "line 1 is not"),
        (
            line(9, 1000, 1, drawn.counts(CAR)),
            "there is no frame 9 in .* which has 3 frames, 0 to 2",
        ),
        (f"0 1000 1 36 24 {drawn.counts(CAR).decode()}\n", r"a mask of 36 x 24 .* is 24 x 36"),
        ("\n0 1000 1 24 36 `0\n", "line 2: the RLE does not fill its 24 x 36 pixels"),
        (
            line(0, 1000, 1, drawn.counts(CAR)) * 2,
            "line 2: object 1000 has a second mask on frame 0",
        ),
        (
            line(0, 1000, 1, drawn.counts(CAR)) + line(1, 1000, 2, drawn.counts(CAR)),
            "line 2: object 1000 was 'car' before",
        ),
        (line(0, 4000, 4, drawn.counts(CAR)), "line 1 is of class 4"),
        ("0 1000 1 24 36 \u00e9\n", "line 1: the RLE does not fill"),
    ],
)
def test_a_fault_of_a_text_names_its_line(tmp_path: Path, text: str, reason: str) -> None:
    drawn.images(tmp_path / "images" / "a", [f"{t}.jpg" for t in range(3)])
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        mots.read(tmp_path)


@pytest.mark.parametrize(
    ("ids", "mode", "reason"),
    [
        (CAR * 1, "L", "do not have the 16 bits of MOTS"),
        (CAR * 7, "I;16", "the value 7 in .* is of class 0"),
        (CAR * 9000, "I;16", "the value 9000 in .* is of class 9"),
    ],
)
def test_pictures_that_are_not_mots_are_refused(
    tmp_path: Path, ids: object, mode: str, reason: str
) -> None:
    drawn.images(tmp_path / "images" / "a", ["0.jpg"])
    drawn.png(tmp_path / "instances" / "a" / "0.png", ids, mode)
    with pytest.raises(ValueError, match=reason):
        mots.read(tmp_path)
