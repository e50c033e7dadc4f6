"""Forty kinds of broken input: each is one video's reject, a repair that is told, or an error that
names the file; the pairs of the good videos beside it stay as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from idol.config import PairConfig
from pipelines import formats
from pipelines.errors import DatasetError, VideoError
from pipelines.sources import annotations
from tests.pipelines.conftest import SIZE, Videos, rectangle
from tests.pipelines.drawn_pairs import pairs_of_video
from tests.pipelines.formats import drawn

Damage = Callable[[Videos], object]
Make = Callable[..., Videos]


def video(key: str, value: Any) -> Damage:
    """Set a field of the second video."""
    return lambda v: v.content["videos"][1].__setitem__(key, value)


def track(key: str, value: Any) -> Damage:
    """Set a field of the second video's first track, annotations[2]."""
    return lambda v: v.content["annotations"][2].__setitem__(key, value)


def mask(value: Any) -> Damage:
    """Replace the mask of that track in frame 1."""
    return lambda v: v.content["annotations"][2]["segmentations"].__setitem__(1, value)


def frame(change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of frame 1 of the second video."""

    def damage(videos: Videos) -> None:
        path = videos.frame(2, 1)
        path.write_bytes(change(path.read_bytes()))

    return damage


def picture(shape: tuple[int, ...]) -> bytes:
    return cv2.imencode(".jpg", np.zeros(shape, np.uint8))[1].tobytes()


def text(change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of the annotation file."""

    def damage(videos: Videos) -> Path:
        path = videos.write()
        path.write_bytes(change(path.read_bytes()))
        return path

    return damage


def deep(count: int) -> bytes:
    return b"[" * count + b"]" * count


BIG = rectangle(0, 0, 6, 6) | {"size": [48, 72]}

REJECTED: dict[str, tuple[Damage, str]] = {
    "height 0": (video("height", 0), "height must be a whole number"),
    "width as a word": (video("width", "wide"), "width must be a whole number"),
    "width of 400 digits": (video("width", 10**400), "width must be a whole number"),
    "length of another number": (video("length", 7), "length says 7"),
    "no frames": (video("file_names", []), "no frames"),
    "frames that are no list": (video("file_names", "v2"), "must be a list of paths"),
    "a frame above the root": (video("file_names", ["../a.jpg"] * 3), "leaves the frames root"),
    "an absolute frame": (video("file_names", ["/etc/hosts"] * 3), "leaves the frames root"),
    "a frame of an address": (video("file_names", ["s3://b/a.jpg"] * 3), "leaves the frames root"),
    "a missing frame": (lambda v: v.frame(2, 1).unlink(), "does not exist"),
    "an empty frame": (frame(lambda _: b""), "0 bytes are not an image"),
    "a frame cut in half": (frame(lambda data: data[: len(data) // 2]), "Premature end"),
    "a frame damaged inside": (
        frame(lambda d: d[: len(d) // 2] + bytes(64) + d[len(d) // 2 + 64 :]),
        "the JPEG is damaged",
    ),
    "a frame that is text": (frame(lambda _: b"<html>404</html>"), "are not an image"),
    "a frame of another size": (frame(lambda _: picture((48, 36, 3))), "48 x 36"),
    "two videos of one id": (video("id", 3), "two videos have this id"),
    "an unknown category": (track("category_id", 99), "not among the categories"),
    "a mask too few": (track("segmentations", [None]), "1 segmentations for 3 frames"),
    "no masks at all": (track("segmentations", None), "no list 'segmentations'"),
    "an RLE that does not fill": (mask({"size": list(SIZE), "counts": "01"}), "covers"),
    "an RLE of garbage": (mask({"size": list(SIZE), "counts": "~~~"}), "RLE"),
    "an RLE with a negative run": (mask({"size": list(SIZE), "counts": [-1, 865]}), "frame 1"),
    "an RLE of another size": (mask(BIG), "the mask has size"),
    "an RLE without counts": (mask({"size": list(SIZE)}), "frame 1"),
    "a mask that is a number": (mask(7), "frame 1"),
    "a polygon of words": (mask([["a", "b", "c", "d", "e", "f"]]), "frame 1"),
    "a polygon with NaN": (mask([[math.nan] * 6]), "frame 1"),
}
"""Kind -> the damage to the second video of three, and what its reject says."""

REPAIRED: dict[str, tuple[Damage, str]] = {
    "an id twice": (track("id", 11), "annotation"),
    "an annotation of no video": (
        lambda v: v.content["annotations"].append({**v.content["annotations"][0], "video_id": 9}),
        "video 9",
    ),
    "iscrowd as a word": (track("iscrowd", "0"), "iscrowd"),
    "a polygon of two points": (mask([[1, 1, 5, 5]]), "frame"),
    "areas with null": (track("areas", [None, None, None]), "area"),
    "backslashes": (video("file_names", [f"v2\\{t:03d}.jpg" for t in range(3)]), "backslash"),
    "a category without a name": (
        lambda v: v.content["categories"].append({"id": 12}),
        "category 12",
    ),
}
"""Kind -> the damage, and what the warning says; all three videos stay."""

REFUSED: dict[str, tuple[Damage, str]] = {
    "an empty file": (text(lambda _: b""), "not JSON"),
    "half a file": (text(lambda data: data[: len(data) // 2]), "not JSON"),
    "bytes that are no UTF-8": (text(lambda data: data.replace(b"car", b"\xff\xfe")), "not JSON"),
    "lists in lists": (text(lambda _: deep(100_000)), "not JSON"),
    "results": (text(lambda _: b"[]"), "not YouTube-VIS"),
    "an id as a word": (video("id", "2"), "id '2', not a whole number"),
    "no categories": (lambda v: v.content.pop("categories"), "categories"),
    "a category id twice": (lambda v: v.content["categories"][0].update(id=3), "twice"),
    "an annotation that is a number": (
        lambda v: v.content["annotations"].__setitem__(2, 5),
        "annotations[2] is not an object",
    ),
    "an annotation without a video": (
        lambda v: v.content["annotations"][2].pop("video_id"),
        "video_id None",
    ),
}
"""Kind -> the damage, and what the error says."""


def rows_of(path: Path, *good: int) -> dict[int, list[dict[str, Any]]]:
    """The pairs of the good videos of a file."""
    dataset = annotations.read(path)
    by_id = {v.video_id: v for v in dataset.videos}
    return {i: list(pairs_of_video(by_id[i], PairConfig(), dataset.labels)) for i in good}


def written(videos: Videos, damage: Damage) -> Path:
    made = damage(videos)
    return made if isinstance(made, Path) else videos.write()


def test_there_are_forty_kinds() -> None:
    assert len(REJECTED) + len(REPAIRED) + len(REFUSED) >= 40


@pytest.mark.parametrize("kind", REJECTED)
def test_a_fault_of_one_video_costs_that_video(make_videos: Make, kind: str) -> None:
    damage, words = REJECTED[kind]
    expected = rows_of(make_videos([3, 3, 3], "clean").write(), 1, 3)
    path = written(make_videos([3, 3, 3]), damage)
    # The second video with the third's id: neither can be told from the other.
    good, bad = ((1,), 3) if kind == "two videos of one id" else ((1, 3), 2)
    assert rows_of(path, *good) == {i: expected[i] for i in good}
    dataset = annotations.read(path)
    rejects = {reject.video_id: f"{reject.path}: {reject.reason}" for reject in dataset.rejects}
    if not rejects:  # the frame's bytes are looked at when its pairs are made
        (video,) = (v for v in dataset.videos if v.video_id == bad)
        with pytest.raises(VideoError) as caught:
            list(pairs_of_video(video, PairConfig(), dataset.labels))
        rejects[bad] = str(caught.value)
    assert set(rejects) == {bad}
    assert words in "".join(rejects.values()), rejects


@pytest.mark.parametrize("kind", REPAIRED)
def test_what_is_harmless_is_repaired_and_told(
    make_videos: Make, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    damage, words = REPAIRED[kind]
    expected = rows_of(make_videos([3, 3, 3], "clean").write(), 1, 3)
    path = written(make_videos([3, 3, 3]), damage)
    assert rows_of(path, 1, 3) == expected
    assert [v.video_id for v in annotations.read(path).videos] == [1, 2, 3]
    assert words in caplog.text


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_without_sense_is_refused_by_name(make_videos: Make, kind: str) -> None:
    damage, words = REFUSED[kind]
    path = written(make_videos([3, 3, 3]), damage)
    with pytest.raises(DatasetError) as caught:
        annotations.read(path)
    assert words in str(caught.value)
    assert path.name in str(caught.value)


def masks(folder: Path, name: str = "b") -> Path:
    """Two videos as DAVIS has them; the mask of the first frame of the video `name`."""
    for video_name in ("a", "b"):
        drawn.images(folder / "JPEGImages" / video_name, ["00000.jpg", "00001.jpg"])
        for t in range(2):
            path = folder / "Annotations" / video_name / f"{t:05d}.png"
            drawn.png(path, drawn.box(2, 2, 9, 9).astype(np.int64))
    return folder / "Annotations" / name / "00000.png"


@pytest.mark.parametrize("kind", ["cut", "flipped", "other size", "text", "no frame", "colour"])
def test_a_broken_mask_costs_its_video(tmp_path: Path, kind: str) -> None:
    path = masks(tmp_path)
    clean = formats.read(tmp_path).content
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "flipped":
        middle = len(data) - 20
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :])
    elif kind == "other size":
        drawn.png(path, np.ones((10, 10), np.int64))
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "no frame":
        path.rename(path.with_name("00077.png"))
    else:
        drawn.png(path, drawn.box(2, 2, 9, 9).astype(np.int64) * 0x123456, "RGB")
    found = formats.read(tmp_path)
    assert set(found.left_out) == {"b"}
    assert {"a": drawn.objects(clean)["a"]} == drawn.objects(found.content)


MOTS = {
    "too few words": "0 1001 1 24 36",
    "letters": "zero 1001 1 24 36 abc",
    "another size": "0 1001 1 48 36 abc",
    "an RLE that does not fill": "0 1001 1 24 36 01",
    "an unknown class": "0 7001 7 24 36 P4",
    "a frame that is not there": "99 1001 1 24 36 P4",
}


@pytest.mark.parametrize("kind", MOTS)
def test_a_broken_line_of_mots_costs_its_sequence(tmp_path: Path, kind: str) -> None:
    good = f"0 1001 1 24 36 {drawn.counts(drawn.box(2, 2, 9, 9)).decode()}\n"
    for name in ("a", "b"):
        drawn.images(tmp_path / "images" / name, ["000000.png", "000001.png"])
        (tmp_path / "instances_txt").mkdir(exist_ok=True)
        (tmp_path / "instances_txt" / f"{name}.txt").write_text(good)
    clean = formats.read(tmp_path).content
    with (tmp_path / "instances_txt" / "b.txt").open("a") as file:
        file.write(MOTS[kind] + "\n")
    found = formats.read(tmp_path)
    assert set(found.left_out) == {"b"}
    assert "line 2" in found.left_out["b"] or "frame 99" in found.left_out["b"]
    assert {"a": drawn.objects(clean)["a"]} == drawn.objects(found.content)
