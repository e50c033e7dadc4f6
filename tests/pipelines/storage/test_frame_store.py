"""Frames by their place: any Arrow reader opens the file, and a changed byte is noticed."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.errors import ManifestError
from pipelines.storage import claims, frame_store, layout, manifest, schemas, tables

ROWS = [
    {
        "video_id": 7,
        "frame_index": t,
        "height": 4,
        "width": 6,
        "jpeg": bytes([t]) * (50 + t),
        "instances": [
            {"instance_id": 3, "label": 1, "rle": b"abc", "box": [0, 1.5, 2, 3] if t else None}
        ][: 1 + t],
    }
    for t in range(5)
]
PLACE = ("offset", "length", "checksum")


@pytest.fixture
def folder(tmp_path) -> Path:
    output = claims.prepare_output(tmp_path / "frames", layout.PREPARE, {}, "h")
    frame_store.commit(ROWS[:3], output.path, 0)
    frame_store.commit(ROWS[3:], output.path, 1)
    output.finish(total_shards=2)
    return output.path


def test_a_frame_is_read_by_its_place(folder):
    index, shards = frame_store.read_index(folder, schemas.FRAME_INDEX.names)
    assert shards.tolist() == [0, 0, 0, 1, 1]
    reader = frame_store.FrameReader(folder)
    for row, place, shard in zip(ROWS, index.to_pylist(), shards.tolist(), strict=True):
        assert reader.read(shard, *(place[name] for name in PLACE)) == row
        assert place["instance_ids"] == [one["instance_id"] for one in row["instances"]]


def test_any_arrow_reader_opens_the_frames(folder):
    with pa.ipc.open_stream(layout.frames_path(folder, 0)) as stream:
        assert stream.read_all().to_pylist() == ROWS[:3]


def test_equal_rows_are_equal_bytes(folder, tmp_path):
    frame_store.commit(ROWS[:3], tmp_path, 0)
    for path in (layout.frames_path, layout.shard_path):
        assert path(folder, 0).read_bytes() == path(tmp_path, 0).read_bytes()


def test_every_changed_byte_of_a_frame_is_noticed(folder):
    path = layout.frames_path(folder, 1)
    whole = path.read_bytes()
    index, _ = frame_store.read_index(folder, PLACE)
    place = [index.column(name)[4].as_py() for name in PLACE]
    for at in range(place[0], place[0] + place[1], 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ManifestError, match=r"frames-00001\.arrows is damaged.*checksum"):
            frame_store.FrameReader(folder).read(1, *place)
    path.write_bytes(whole[: place[0] + 9])  # cut short
    with pytest.raises(ManifestError, match=r"frames-00001\.arrows is damaged"):
        frame_store.FrameReader(folder).read(1, *place)


def test_frames_that_have_gone_are_missed(folder):
    layout.frames_path(folder, 1).unlink()
    with pytest.raises(ManifestError, match=r"lost frames-00001\.arrows"):
        frame_store.read_index(folder, ["video_id"])


def test_another_number_of_rows_than_the_manifest_says_is_refused(folder):
    table = tables.read(layout.shard_path(folder, 0), schemas.FRAME_INDEX)
    tables.commit(table.slice(1), layout.shard_path(folder, 0))
    with pytest.raises(ManifestError, match="has 4 frames in its shards, its manifest says 5"):
        frame_store.read_index(folder, ["video_id"])


def test_overwriting_takes_the_frames_too(folder):
    claims.prepare_output(folder, layout.PREPARE, {"other": 1}, "h", overwrite=True)
    assert [path.name for path in folder.iterdir()] == [manifest.STARTED]
