"""Row → parquet → row is the identity, for every table."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.evaluation.overlaps import FrameOverlap
from idol.structures import FrameDetections
from pipelines.storage import schemas


def frame(index: int, count: int, classes: int, channels: int, seed: int) -> FrameDetections:
    g = torch.Generator().manual_seed(seed)
    return FrameDetections(
        frame_index=index,
        scores=torch.rand(count, generator=g),
        class_scores=torch.rand(count, classes, generator=g),
        embeddings=torch.randn(count, channels, generator=g),
        overlaps=torch.rand(count, count, generator=g),
        boxes=torch.rand(count, 4, generator=g),
        masks=tuple(f"rle{i}".encode() for i in range(count)),
    )


def assert_same(a: FrameDetections, b: FrameDetections) -> None:
    for name in ("scores", "class_scores", "embeddings", "overlaps", "boxes"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)
    assert (a.frame_index, a.masks) == (b.frame_index, b.masks)


# No deadlines: the first example pays for the imports.
@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    classes=st.integers(1, 4),
    channels=st.integers(1, 6),
    skip=st.integers(0, 3),
)
def test_detections_come_back_bit_for_bit(counts, classes, channels, skip):
    frames = [frame(i, n, classes, channels, seed=i) for i, n in enumerate(counts)]
    table = schemas.table(
        [schemas.detections_to_row(f, 9, (20, 30)) for f in frames], schemas.DETECTIONS
    )
    # A slice starts in the middle of Arrow's buffers: offsets must be honoured.
    for row, expected in zip(schemas.rows(table.slice(skip)), frames[skip:], strict=True):
        back = schemas.detections_from_row(row, num_classes=classes, embedding_size=channels)
        assert_same(back, expected)
        assert (row["video_id"], row["height"], row["width"]) == (9, 20, 30)


def test_detections_survive_parquet_and_may_leave_the_masks_behind(tmp_path):
    rows = [schemas.detections_to_row(frame(0, 3, 2, 4, 0), 1, (8, 8))]
    pq.write_table(schemas.table(rows, schemas.DETECTIONS), tmp_path / "a.parquet")
    names = [n for n in schemas.DETECTIONS.names if n != "masks"]
    (row,) = schemas.rows(pq.read_table(tmp_path / "a.parquet", columns=names))
    back = schemas.detections_from_row(row)
    assert back.masks == ()
    torch.testing.assert_close(back.embeddings, frame(0, 3, 2, 4, 0).embeddings)


def test_detections_without_their_masks_cannot_be_stored():
    bare = FrameDetections(0, *(torch.rand(s) for s in ((1,), (1, 2), (1, 3), (1, 1), (1, 4))))
    with pytest.raises(ValueError, match="needs 1 masks, got 0"):
        schemas.detections_to_row(bare, 1, (8, 8))


def test_a_row_of_another_model_is_refused():
    row = schemas.detections_to_row(frame(0, 2, 3, 4, 0), 5, (8, 8))
    with pytest.raises(ValueError, match="class_scores of video 5 frame 0"):
        schemas.detections_from_row(row, num_classes=7)


@settings(deadline=None)
@given(detections=st.integers(0, 3), instances=st.integers(0, 3))
def test_overlaps_come_back(detections, instances):
    overlap = FrameOverlap(
        frame_index=5,
        intersection=np.arange(detections * instances, dtype=np.float32).reshape(
            detections, instances
        ),
        area=np.arange(detections, dtype=np.float32),
        truth_area=np.arange(instances, dtype=np.float32),
    )
    table = schemas.table([schemas.overlap_to_row(overlap, 2)], schemas.OVERLAP)
    (back,) = (schemas.overlap_from_row(row) for row in schemas.rows(table))
    for name in ("intersection", "area", "truth_area"):
        np.testing.assert_array_equal(getattr(back, name), getattr(overlap, name))
    assert back.frame_index == 5
    assert table.column("video_id").to_pylist() == [2]


def test_results_come_back_with_their_gaps():
    result = schemas.ResultTrack(3, 1, 0, 0.5, (b"abc", None, b""))
    table = schemas.table([schemas.result_to_row(result)], schemas.RESULTS)
    assert [schemas.result_from_row(row) for row in schemas.rows(table)] == [result]


def test_no_table_uses_more_than_plain_arrow_types():
    for schema in (
        schemas.PAIRS,
        schemas.DETECTIONS,
        schemas.OVERLAP,
        schemas.RESULTS,
        schemas.REJECTS,
    ):
        assert not any(isinstance(field.type, pa.ExtensionType) for field in schema)


def test_a_row_with_a_wrong_or_empty_field_is_refused():
    with pytest.raises(ValueError, match="a row must have the fields"):
        schemas.table([{"video_id": 1, "path": "p"}], schemas.REJECTS)
    with pytest.raises(ValueError, match="column 'reason' must not be null"):
        schemas.table([{"video_id": 1, "path": "p", "reason": None}], schemas.REJECTS)
