"""The Arrow schema of every table, and the way from a row to what it means and back.

Plain Arrow types only, so that any parquet reader can open the tables. A row is a dict with the
schema's names; `rows` reads tables fast, with float lists as numpy arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from idol.evaluation.overlaps import FrameOverlap

if TYPE_CHECKING:  # torch takes seconds to import, and workers that only move bytes never need it
    from idol.structures import FrameDetections

VERSION = 2
"""Raised whenever a table changes; manifests carry it."""

_FLOATS = pa.list_(pa.float32())
_ARRAYS = ("scores", "class_scores", "embeddings", "overlaps", "boxes")  # of a DETECTIONS row
_COUNTS = ("intersection", "area", "truth_area")  # of an OVERLAP row
_BOUNDS = {
    **dict.fromkeys(("scores", "class_scores", "overlaps", "score"), (0.0, 1.001)),  # rounded up
    **dict.fromkeys(
        (*_COUNTS, "frame_index", "key_index", "reference_index", "label", "offset", "checksum"),
        (0, np.inf),
    ),
    **dict.fromkeys(("height", "width", "length"), (1, np.inf)),
}
"""The least and largest number of a column."""


def _required(**columns: pa.DataType) -> pa.Schema:
    """A schema of columns that may not be null."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


PAIRS = _required(
    video_id=pa.int64(),
    key_index=pa.int32(),
    reference_index=pa.int32(),
    height=pa.int32(),
    width=pa.int32(),
    key_jpeg=pa.binary(),
    reference_jpeg=pa.binary(),
    instances=pa.list_(
        pa.struct(
            [
                pa.field("instance_id", pa.int64(), nullable=False),
                pa.field("label", pa.int32(), nullable=False),
                pa.field("key_rle", pa.binary()),
                pa.field("reference_rle", pa.binary()),
            ]
        )
    ),
)
"""One key/reference pair. height and width are those of the stored frames and masks; an absent
instance has a null RLE in that frame; RLEs are COCO compressed counts. Where key_index and
reference_index are equal (a still image), the frame is stored once: reference_jpeg is empty and
every reference_rle null, and both stand for the key's."""

FRAMES = _required(
    video_id=pa.int64(),
    frame_index=pa.int32(),
    height=pa.int32(),
    width=pa.int32(),
    jpeg=pa.binary(),
    instances=pa.list_(
        pa.struct(
            [
                pa.field("instance_id", pa.int64(), nullable=False),
                pa.field("label", pa.int32(), nullable=False),
                pa.field("rle", pa.binary(), nullable=False),
                pa.field("box", pa.list_(pa.float32())),
            ]
        )
    ),
)
"""One frame, from which pairs and longer clips are drawn, and the objects that are visible in it.
height and width are those of the stored frame, its masks and boxes; box is the annotated one, xyxy
in pixels, or null where the mask's own is to be used. Not parquet: see frame_store."""

FRAME_INDEX = _required(
    video_id=pa.int64(),
    frame_index=pa.int32(),
    height=pa.int32(),
    width=pa.int32(),
    offset=pa.int64(),
    length=pa.int32(),
    checksum=pa.int64(),
    instance_ids=pa.list_(pa.int64()),
)
"""Where a row of FRAMES lies: its bytes in the shard's file, and their CRC-32."""

DETECTIONS = _required(
    video_id=pa.int64(),
    frame_index=pa.int32(),
    height=pa.int32(),
    width=pa.int32(),
    **dict.fromkeys(_ARRAYS, _FLOATS),
    masks=pa.list_(pa.binary()),
)
"""One frame, also when nothing was found in it. N = len(scores); the other lists are row-major;
overlaps is the (N, N) mask IoU."""

OVERLAP = _required(
    video_id=pa.int64(),
    frame_index=pa.int32(),
    **dict.fromkeys(_COUNTS, _FLOATS),
)
"""Pixels shared by the N detections and G true instances of one frame."""

RESULTS = _required(
    video_id=pa.int64(),
    track_id=pa.int64(),
    label=pa.int32(),
    score=pa.float32(),
    segmentations=pa.list_(pa.binary()),
)
"""One track of one class; one RLE or null per frame of the video."""

TRACK_ROWS = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("frame", pa.int64(), nullable=False),
        pa.field("time", pa.float64()),
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("box", pa.list_(pa.float32()), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field(
            "segmentation",
            pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())]),
            nullable=False,
        ),
    ]
)
"""One instance of one frame of a followed source. frame: its number in the source, from 0; time:
seconds, null where nothing says so; category: the best one by the track's frames so far; box: the
mask's, xyxy in pixels; area: its pixels; segmentation: its RLE as COCO has it."""

REJECTS = _required(video_id=pa.int64(), path=pa.string(), reason=pa.string())
"""What was left out, and why. Beside every table."""


@dataclass(frozen=True, slots=True)
class ResultTrack:
    """One row of RESULTS: compressed RLE counts, or None, for every frame of the video."""

    video_id: int
    track_id: int
    label: int
    score: float
    segmentations: Sequence[bytes | None]


def table(items: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table. Raises: ValueError: a field is missing, unknown or null."""
    if items and set(items[0]) != set(schema.names):
        raise ValueError(
            f"a row must have the fields {schema.names}, got {sorted(items[0])}. "
            "Rows are made by the to_row functions of pipelines/storage/schemas.py."
        )
    made = pa.Table.from_pylist(items, schema=schema)
    for field, column in zip(schema, made.columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(
                f"column {field.name!r} must not be null, but {column.null_count} rows are"
            )
    return made


def check(table: pa.Table, schema: pa.Schema, columns: Iterable[str] | None = None) -> None:
    """Whether a table that was read holds what a stage may have written.

    columns: those that were asked for; None: all of the schema
    Raises: LookupError, TypeError, ValueError: it does not; the message names the column.
    """
    for name in schema.names if columns is None else columns:
        column, wanted = table.column(name), schema.field(name)
        if column.type != wanted.type:
            raise TypeError(f"column {name!r} is {column.type}, not {wanted.type}")
        if column.null_count and not wanted.nullable:
            raise ValueError(f"column {name!r} has {column.null_count} empty rows")
        if column.type == _FLOATS:
            column = pc.list_flatten(column)
        if name in _BOUNDS or column.type == pa.float32():
            low, high = _BOUNDS.get(name, (-np.inf, np.inf))
            values = column.to_numpy()
            if not (np.isfinite(values) & (values >= low) & (values <= high)).all():
                raise ValueError(f"column {name!r} holds a number that is not in [{low}, {high}]")


def rows(source: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as dicts: float lists become (n,) float32 arrays, everything else Python objects.

    Several times faster than to_pylist on DETECTIONS, whose lists are long.
    """
    batches = source.to_batches() if isinstance(source, pa.Table) else [source]
    for batch in batches:
        columns = [
            _float_lists(column) if column.type.equals(_FLOATS) else column.to_pylist()
            for column in batch.columns
        ]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


def _float_lists(column: pa.ListArray) -> list[npt.NDArray[np.float32]]:
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy(zero_copy_only=False)
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]


def detections_to_row(
    frame: FrameDetections, video_id: int, size: tuple[int, int]
) -> dict[str, Any]:
    """A DETECTIONS row; size: (height, width) of the original frame, as of boxes and masks."""
    if len(frame.masks) != len(frame):
        raise ValueError(f"a stored frame needs {len(frame)} masks, got {len(frame.masks)}")

    def flat(name: str) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = getattr(frame, name).detach().float().cpu().numpy()
        return values.ravel()

    return {
        "video_id": video_id,
        "frame_index": frame.frame_index,
        "height": size[0],
        "width": size[1],
        **{name: flat(name) for name in _ARRAYS},
        "masks": list(frame.masks),
    }


def detections_from_row(
    row: Mapping[str, Any], *, num_classes: int = 0, embedding_size: int = 0
) -> FrameDetections:
    """The inverse of detections_to_row; without the column `masks`, a frame without masks.

    num_classes, embedding_size: K and C shape the empty tensors of a frame without detections;
        where there are detections they must agree, or be 0
    """
    import torch

    from idol.structures import FrameDetections

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(row[name], dtype=np.float32))

    scores = tensor("scores")
    count = len(scores)

    def matrix(name: str, columns: int) -> torch.Tensor:
        flat = tensor(name)
        if count == flat.numel() == 0:
            return flat.reshape(0, columns)
        if not count or flat.numel() % count or (columns and flat.numel() != count * columns):
            raise ValueError(
                f"{name} of video {row.get('video_id')} frame {row.get('frame_index')} has "
                f"{flat.numel()} numbers for {count} detections of {columns or 'any'} columns"
            )
        return flat.reshape(count, -1)

    return FrameDetections(
        frame_index=int(row["frame_index"]),
        scores=scores,
        class_scores=matrix("class_scores", num_classes),
        embeddings=matrix("embeddings", embedding_size),
        overlaps=matrix("overlaps", count),
        boxes=matrix("boxes", 4),
        masks=tuple(row.get("masks") or ()),
    )


def overlap_to_row(overlap: FrameOverlap, video_id: int) -> dict[str, Any]:
    """An OVERLAP row."""
    return {
        "video_id": int(video_id),
        "frame_index": int(overlap.frame_index),
        **{name: np.asarray(getattr(overlap, name), np.float32).ravel() for name in _COUNTS},
    }


def overlap_from_row(row: Mapping[str, Any]) -> FrameOverlap:
    """The inverse of overlap_to_row."""
    intersection, area, truth_area = (np.asarray(row[name], np.float32) for name in _COUNTS)
    return FrameOverlap(
        row["frame_index"], intersection.reshape(len(area), len(truth_area)), area, truth_area
    )


def result_to_row(result: ResultTrack) -> dict[str, Any]:
    """A RESULTS row."""
    row = {name: getattr(result, name) for name in RESULTS.names}
    return {**row, "segmentations": list(result.segmentations)}


def result_from_row(row: Mapping[str, Any]) -> ResultTrack:
    """The inverse of result_to_row."""
    return ResultTrack(**{**row, "segmentations": tuple(row["segmentations"])})
