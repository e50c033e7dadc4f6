"""A fingerprint of frame files: a copy elsewhere keeps it; another name, size or byte does not."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources import frame_listing
from pipelines.sources.frame_listing import FrameListing

NAMES = [f"v{video}/{frame}.jpg" for video in range(3) for frame in range(4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "frames" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(50))
    return tmp_path / "frames"


def fingerprint(root: Path | str, names: list[str] = NAMES) -> str:
    return FrameListing(str(root)).fingerprint(lambda: (f"{root}/{name}" for name in names))


def test_a_copy_elsewhere_has_the_same_fingerprint(root: Path, tmp_path: Path) -> None:
    before = fingerprint(root)
    assert before.startswith("12 files of 600 bytes (")
    assert fingerprint(shutil.copytree(root, tmp_path / "far" / "away")) == before
    assert fingerprint(f"file://{root}") == before  # as object storage is read
    (root / "v0" / "notes.txt").write_text("not a frame")
    assert fingerprint(root) == before


@pytest.mark.parametrize("change", ["bytes", "size", "name"])
def test_other_frames_have_another(root: Path, change: str) -> None:
    before, path, names = fingerprint(root), root / NAMES[5], list(NAMES)
    if change == "bytes":
        path.write_bytes(path.read_bytes()[::-1])
    elif change == "size":
        path.write_bytes(path.read_bytes() + b"0")
    else:
        names[5] = "v1/one.jpg"
        path.rename(root / names[5])
    assert fingerprint(root, names) != before


def test_a_video_file_is_read_in_a_few_places(root: Path) -> None:
    path = root / "long.mp4"
    path.write_bytes(bytes(2**20))
    names = [f"long.mp4#{number}" for number in range(1000)]
    before = fingerprint(root, names)
    assert before.startswith(f"1 files of {2**20} bytes")
    for place in (0, 2**19 - 2**17, 2**20 - 1):
        content = bytearray(2**20)
        content[place] = 1
        path.write_bytes(content)
        assert (fingerprint(root, names) != before) == (place != 2**19 - 2**17)
    assert len(frame_listing.blocks(str(path), 2**20)) == 4 * 2**16


def test_a_folder_is_listed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    there = frame_listing.frames.files_in
    monkeypatch.setattr(
        frame_listing.frames, "files_in", lambda folder: asked.append(folder) or there(folder)
    )
    listing = FrameListing(str(root))
    assert [listing.bytes_of(str(root / name)) for name in [*NAMES, "v0/none.jpg"]] == [
        *[50] * len(NAMES), None
    ]  # fmt: skip
    listing.fingerprint(lambda: (str(root / name) for name in NAMES))
    assert asked == [str(root / f"v{video}") for video in range(3)]


def test_a_file_that_cannot_be_read_is_left_to_its_reader(root: Path) -> None:
    (root / NAMES[0]).unlink()
    (root / NAMES[0]).symlink_to(root / "nowhere")
    assert FrameListing(str(root)).bytes_of(str(root / NAMES[0])) is None
    assert frame_listing.blocks(str(root / "nowhere"), 50) == b""
