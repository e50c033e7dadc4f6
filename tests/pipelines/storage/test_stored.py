"""Stored detections and results that were changed by hand are refused with the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idol.masks import rle
from pipelines.errors import ManifestError
from pipelines.storage import claims, layout, manifest, schemas, stored, tables

SIZE = (8, 12)
MASK = rle.encode_masks(np.ones((1, *SIZE), np.uint8))[0]
DETECTION: dict[str, Any] = {
    "scores": [0.5], "class_scores": [0.5, 0.25], "embeddings": [1.0, 2.0], "overlaps": [1.0],
    "boxes": [0.0, 0.0, 1.0, 1.0], "masks": [MASK],
}  # fmt: skip
OVERLAP: dict[str, Any] = {"intersection": [9.0], "area": [96.0], "truth_area": [9.0]}
RESULT: dict[str, Any] = {
    "video_id": 7, "track_id": 1, "label": 1, "score": 0.5, "segmentations": [MASK, None],
}  # fmt: skip


def detections(path: Path) -> Path:
    """A finished detect directory: video 7, two frames, one detection each."""
    config = {"category_ids": [3, 9], "detect": {"score_floor": 0.1}}
    output = claims.prepare_output(path, layout.DETECT, config, "h")
    frames = [{"video_id": 7, "frame_index": i} for i in range(2)]
    sized = [{**frame, "height": SIZE[0], "width": SIZE[1], **DETECTION} for frame in frames]
    tables.commit(schemas.table(sized, schemas.DETECTIONS), output.shard(0))
    overlaps = [{**frame, **OVERLAP} for frame in frames]
    overlap = layout.shard_path(path, 0, "overlap")
    tables.commit(schemas.table(overlaps, schemas.OVERLAP), overlap)
    video = stored.StoredVideo(video_id=7, size=SIZE, length=2, shards=(0,))
    sizes = {"num_classes": 2, "embedding_size": 2, "truth": True}
    output.finish(total_shards=1, extra={"videos": [video.to_json()], **sizes})
    return path


def edit(path: Path, schema: pa.Schema, **changed: Any) -> None:
    """Write the table again with other values in its last row, by Arrow alone."""
    rows = pq.read_table(path).to_pylist()
    rows[-1] |= changed
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def test_what_was_stored_is_read(tmp_path: Path) -> None:
    source = stored.read(detections(tmp_path))
    (video,) = source.videos
    assert [frame.scores.tolist() for frame in source.frames(video)] == [[0.5], [0.5]]
    assert [masks for _, masks in source.masks(video)] == [[MASK], [MASK]]
    assert [overlap.area.tolist() for overlap in source.overlaps(video)] == [[96.0], [96.0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": [float("nan")]}, "'scores' holds a number"),
        ({"scores": [1.5]}, "'scores' holds a number"),
        ({"embeddings": [float("inf"), 0.0]}, "'embeddings' holds a number"),
        ({"class_scores": [0.5]}, "class_scores of video 7 frame 1"),
        ({"boxes": [0.0]}, "boxes of video 7 frame 1"),
        ({"scores": []}, r"shard-00000\.parquet is damaged"),
        ({"frame_index": 0}, "frame 0 follows 0"),
        ({"video_id": 8}, "1 of 2 frames are there"),
    ],
)
def test_changed_detections_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    source = stored.read(detections(tmp_path))
    edit(layout.shard_path(tmp_path, 0), schemas.DETECTIONS, **changed)
    with pytest.raises(ManifestError, match=message):
        list(source.frames(source.videos[0]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"area": [float("nan")]}, "'area' holds a number"),
        ({"intersection": [-1.0]}, "'intersection' holds a number"),
        ({"intersection": [1.0, 2.0]}, r"overlap-00000\.parquet is damaged"),
        ({"frame_index": 0}, "frame 0 follows 0"),
    ],
)
def test_changed_overlaps_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    source = stored.read(detections(tmp_path))
    edit(layout.shard_path(tmp_path, 0, "overlap"), schemas.OVERLAP, **changed)
    with pytest.raises(ManifestError, match=message):
        list(source.overlaps(source.videos[0]))


def test_results_are_written_and_read_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stored.read(detections(tmp_path / "detections"))
    path = layout.shard_path(tmp_path, 0)
    tracks = [schemas.result_from_row({**RESULT, "track_id": n}) for n in range(5)]
    monkeypatch.setattr(stored, "_MASKS_PER_GROUP", 4)
    stored.write_results(iter(tracks), 2, path)
    assert tables.group_rows(path) == [2, 2, 1]
    assert list(stored.read_results(tmp_path, 0, source)) == tracks
    stored.write_results([*tracks, tracks[0]], 2, path)
    with pytest.raises(ManifestError, match="a track is there twice"):
        list(stored.read_results(tmp_path, 0, source))
    stored.write_results([], 2, path)
    assert list(stored.read_results(tmp_path, 0, source)) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"label": 2},
        {"label": -1},
        {"score": float("nan")},
        {"video_id": 8},
        {"track_id": 1, "label": 1},
        {"segmentations": [MASK]},
        {"segmentations": [b"garbage", None]},
        {"segmentations": [rle.encode_masks(np.ones((1, 3, 3), np.uint8))[0], None]},
    ],
)
def test_changed_results_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    source = stored.read(detections(tmp_path / "detections"))
    path = layout.shard_path(tmp_path, 0)
    rows = [RESULT, {**RESULT, "track_id": 2}]
    tables.commit(schemas.table(rows, schemas.RESULTS), path)
    assert [r.track_id for r in stored.read_results(tmp_path, 0, source)] == [1, 2]
    edit(path, schemas.RESULTS, **changed)
    with pytest.raises(ManifestError, match=r"shard-00000\.parquet is damaged"):
        list(stored.read_results(tmp_path, 0, source))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("videos", None),
        ("videos", [{"video_id": 7}]),
        ("num_classes", "two"),
        ("embedding_size", None),
    ],
)
@pytest.mark.parametrize("gone", [True, False])
def test_a_manifest_that_lacks_what_readers_need_is_refused(
    tmp_path: Path, place: str, value: Any, gone: bool
) -> None:
    path = detections(tmp_path) / manifest.MANIFEST
    content = json.loads(path.read_text())
    del content["checksum"]
    content["extra"][place] = value
    if gone:
        del content["extra"][place]
    path.write_text(json.dumps(content))
    with pytest.raises(ManifestError, match=r"_manifest\.json is damaged, or was changed by hand"):
        stored.read(tmp_path)
