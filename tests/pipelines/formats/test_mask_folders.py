"""Mask folders: which pixel is which object, and what is said of frames, sizes and categories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.formats import mask_folders
from tests.pipelines.formats import drawn

FIRST, SECOND = drawn.box(2, 3, 9, 12), drawn.box(20, 5, 30, 20)
IDS = FIRST * 1 + SECOND * 2


def davis(root: Path, *, inside: str = "", video: str = "bear", frames: int = 3) -> Path:
    """A folder of DAVIS with the images of one video; returns the folder of its masks."""
    names = [f"{t:05d}.jpg" for t in range(frames)]
    drawn.images(root / "JPEGImages" / inside / video, names)
    return root / "Annotations" / inside / video


@pytest.mark.parametrize("inside", ["", "480p", "Full-Resolution"])
def test_palette_png_are_numbers_of_objects_whatever_their_colours(
    tmp_path: Path, inside: str
) -> None:
    masks = davis(tmp_path, inside=inside)
    for t in range(3):
        drawn.png(masks / f"{t:05d}.png", IDS if t else FIRST * 1)
    found = mask_folders.read(tmp_path)
    assert found.frames == tmp_path / "JPEGImages" / inside
    assert drawn.file_names(found.content) == {"bear": [f"bear/{t:05d}.jpg" for t in range(3)]}
    one, two = drawn.counts(FIRST), drawn.counts(SECOND)
    assert drawn.objects(found.content) == {
        "bear": [("object", [None, two, two]), ("object", [one, one, one])]
    }
    assert found.notes["objects without a category, named 'object'"] == (2, "bear")
    # The folder of masks itself, and frames that lie elsewhere.
    again = mask_folders.read(tmp_path / "Annotations" / inside)
    assert again.content == found.content
    (tmp_path / "JPEGImages").rename(tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match=r"no JPEGImages beside .*--frames"):
        mask_folders.read(tmp_path)
    moved = mask_folders.read(tmp_path, tmp_path / "pictures")
    assert drawn.objects(moved.content) == drawn.objects(found.content)
    assert moved.frames == tmp_path / "pictures"


@pytest.mark.parametrize(
    ("mode", "values", "number"),
    [
        ("P", (1, 2), 2),
        ("L", (1, 2), 2),
        ("L", (38, 75), 2),
        ("L", (255,), 1),  # DAVIS 2016
        ("P", (255,), 1),
        ("1", (1,), 1),
        ("I;16", (1, 255), 2),
        ("I;16", (255, 4000), 2),
        ("RGB", (0x800000, 0x008000), 2),
        ("RGB", (0xFFFFFF,), 1),
    ],
)
def test_every_kind_of_picture_gives_its_objects(
    tmp_path: Path, mode: str, values: tuple[int, ...], number: int
) -> None:
    masks = davis(tmp_path)
    shapes = (FIRST, SECOND)[: len(values)]
    for t in range(3):
        ids = sum(v * s.astype(np.int64) for v, s in zip(values, shapes, strict=True))
        drawn.png(masks / f"{t:05d}.png", np.asarray(ids), mode)
    found = mask_folders.read(tmp_path)
    expected = sorted([("object", [drawn.counts(shape)] * 3) for shape in shapes], key=str)
    assert drawn.objects(found.content)["bear"] == expected
    assert len(found.content["annotations"]) == number
    coloured = "videos with masks in colours, each colour taken as one object"
    assert (coloured in found.notes) == (mode == "RGB")
    assert not any("void" in kind for kind in found.notes)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_white_among_other_objects_is_void_and_counted(tmp_path: Path, mode: str) -> None:
    masks = davis(tmp_path)
    for t in range(3):  # frame 2 has white alone, and is of the same video
        ids = FIRST * (1 if t < 2 else 0) + SECOND * 255
        drawn.png(masks / f"{t:05d}.png", ids, mode)
    found = mask_folders.read(tmp_path)
    one = drawn.counts(FIRST)
    assert drawn.objects(found.content) == {"bear": [("object", [one, one, None])]}
    assert found.notes["masks with void (white among other objects), left out"] == (3, "bear")


def test_frames_without_a_mask_file_leave_the_video(tmp_path: Path) -> None:
    masks = davis(tmp_path, frames=11)
    for t in (0, 5, 10):
        drawn.png(masks / f"{t:05d}.png", FIRST * 1)
    drawn.images(tmp_path / "JPEGImages" / "unmasked", ["00000.jpg"])
    found = mask_folders.read(tmp_path)
    assert drawn.file_names(found.content) == {"bear": [f"bear/{t:05d}.jpg" for t in (0, 5, 10)]}
    assert found.notes["frames without a mask file, left out of their video"] == (8, "bear")
    assert found.notes["folders of frames without masks, left out"] == (1, "unmasked")


@pytest.mark.parametrize(
    ("masked", "unmasked", "told"),
    [
        (["a", "b/c"], ["d", "b/e", "f/g"], ["b/e", "d", "f"]),
        (["b/c"], ["b/e"], ["b/e"]),
        (["480p/a"], ["480p/d", "Full-Resolution/a", "Full-Resolution/d"], ["480p/d"]),
        (["a", "b/c"], [], []),
    ],
)
def test_folders_without_masks_are_told_at_every_depth(
    tmp_path: Path, masked: list[str], unmasked: list[str], told: list[str]
) -> None:
    for video in masked:
        drawn.png(davis(tmp_path, video=video) / "00000.png", IDS)
    for video in unmasked:
        davis(tmp_path, video=video)
    kind = "folders of frames without masks, left out"
    for frames in (None, tmp_path / "JPEGImages"):
        found = mask_folders.read(tmp_path, frames)
        assert found.notes.get(kind) == ((len(told), told[0]) if told else None)
    if "480p/a" in masked:  # the images may lie without the folder of a resolution
        found = mask_folders.read(tmp_path, tmp_path / "JPEGImages" / "480p")
        assert found.notes[kind] == (1, "d")


def test_masks_below_the_folder_of_frames_are_no_frames_without_masks(tmp_path: Path) -> None:
    drawn.png(davis(tmp_path) / "00000.png", IDS)
    (tmp_path / "JPEGImages" / "bear").rename(tmp_path / "bear")
    (tmp_path / "JPEGImages").rmdir()
    found = mask_folders.read(tmp_path, tmp_path)
    assert not any("without masks" in kind for kind in found.notes)


def test_a_mask_finds_its_frame_by_number_and_in_a_film(tmp_path: Path) -> None:
    drawn.film(tmp_path / "JPEGImages" / "seen.mp4", 6)
    for t in (1, 4):
        drawn.png(tmp_path / "Annotations" / "seen" / f"{t:05d}.PNG", FIRST * 1)
    (tmp_path / "Annotations" / "seen" / "._00002.png").write_bytes(b"of a Macintosh")
    found = mask_folders.read(tmp_path)
    assert drawn.file_names(found.content) == {"seen": ["seen.mp4#1", "seen.mp4#4"]}
    assert found.frames == tmp_path / "JPEGImages"


def test_meta_json_names_the_categories(tmp_path: Path) -> None:
    masks = davis(tmp_path)
    for t in range(3):
        drawn.png(masks / f"{t:05d}.png", IDS)
    kinds = {"1": {"category": "bear", "frames": []}, "2": {"category": "ball"}}
    meta = {"videos": {"bear": {"objects": kinds}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    found = mask_folders.read(tmp_path)
    assert [category for category, _ in drawn.objects(found.content)["bear"]] == ["ball", "bear"]
    assert found.notes == {}

    del kinds["2"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(
        ValueError, match=r"no video that can be used: bear: .*category of object 2"
    ):
        mask_folders.read(tmp_path)
    (tmp_path / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match="no object 'videos'"):
        mask_folders.read(tmp_path)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("extra", r"there is no frame 00007 in .*bad, which has 3 frames, 00000 to 00002"),
        ("size", r"00001.png is 10 x 12 \(height x width\), its frame 24 x 36"),
        ("frames", r"different sizes \(height x width\): .* is 10 x 12, .* is 24 x 36"),
        ("cut", r"00001.png cannot be read as an image \(.*[Tt]runcated"),
        ("flipped", "00001.png cannot be read as an image"),
        ("empty", "00001.png cannot be read as an image"),
        ("text", "00001.png cannot be read as an image"),
        ("kinds", "are not of one kind"),
        ("twice", "are masks of one frame"),
        ("picture", r"00001.jpg cannot be read as an image"),
        ("lost", "no folder of images or film"),
    ],
)
def test_a_fault_leaves_out_its_video_alone(tmp_path: Path, fault: str, reason: str) -> None:
    for video in ("good", "bad"):
        masks = davis(tmp_path, video=video)
        for t in range(3):
            drawn.png(masks / f"{t:05d}.png", IDS)
    pictures, second = tmp_path / "JPEGImages" / "bad", masks / "00001.png"
    content = second.read_bytes()
    match fault:
        case "extra":
            drawn.png(masks / "00007.png", IDS)
        case "size":
            drawn.png(second, drawn.box(1, 1, 5, 5, (10, 12)) * 1)
        case "frames":
            drawn.images(pictures, ["00001.jpg"], (10, 12))
        case "cut":
            second.write_bytes(content[: len(content) - 40])
        case "flipped":
            middle = content.index(b"IDAT") + 12
            flipped = bytes([content[middle] ^ 1])
            second.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        case "empty":
            second.write_bytes(b"")
        case "text":
            second.write_text("no picture")
        case "kinds":
            drawn.png(second, IDS, "RGB")
        case "twice":
            drawn.png(masks / "1.png", IDS)
        case "picture":
            (pictures / "00001.jpg").write_bytes(b"\xff\xd8\xff")
        case "lost":
            pictures.rename(tmp_path / "elsewhere")
    found = mask_folders.read(tmp_path)
    assert list(drawn.objects(found.content)) == ["good"]
    ((name, told),) = found.left_out.items()
    assert name == "bad"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(told)


def test_two_resolutions_of_the_same_videos_are_not_two_sets(tmp_path: Path) -> None:
    for inside in ("480p", "Full-Resolution"):
        drawn.png(davis(tmp_path, inside=inside) / "00000.png", IDS)
    with pytest.raises(ValueError, match=r"in 480p and Full-Resolution; read one: .*480p"):
        mask_folders.read(tmp_path)
    assert len(mask_folders.read(tmp_path / "Annotations" / "480p").content["videos"]) == 1


def test_nested_folders_are_videos_of_their_own(tmp_path: Path) -> None:
    for inside in ("a", "b"):
        drawn.png(davis(tmp_path, inside=inside) / "00000.png", IDS)
    names = drawn.file_names(mask_folders.read(tmp_path).content)
    assert names == {"a/bear": ["a/bear/00000.jpg"], "b/bear": ["b/bear/00000.jpg"]}


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    davis(tmp_path).mkdir(parents=True)
    with pytest.raises(ValueError, match="no PNG masks in"):
        mask_folders.read(tmp_path)
