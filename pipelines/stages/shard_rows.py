"""Planned rows to rows of FRAMES or PAIRS: frames are read, resized and encoded, in Ray's tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from idol.config import PairConfig
from idol.ytvis.videos import Box, Reject
from pipelines.errors import VideoError
from pipelines.sources import frames
from pipelines.sources.annotations import VideoRecord

Instances = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A row before its frames are read.

    indices:   its frame, or key and reference
    frames:    references of these
    instances: as the row has them, at full size
    """

    video_id: int
    size: tuple[int, int]
    indices: tuple[int, ...]
    frames: tuple[str, ...]
    instances: Instances


def planned_frame(video: VideoRecord, index: int, labels: Mapping[int, int]) -> Planned:
    """One frame of a video, with the objects that are seen in it; crowds are left out.

    labels: category_id → label
    """
    instances = [
        {
            "instance_id": instance.instance_id,
            "label": labels[instance.category_id],
            "rle": instance.segmentations[index],
            "box": _corners(instance.boxes[index]) if instance.boxes else None,
        }
        for instance in video.instances
        if not instance.iscrowd and instance.segmentations[index]
    ]
    return _planned(video, (index,), instances)


def planned_pair(
    video: VideoRecord, key: int, reference: int, labels: Mapping[int, int]
) -> Planned:
    """One pair of a video. Objects seen in neither frame, and crowds, are left out.

    labels: category_id → label
    """
    instances = [
        {
            "instance_id": instance.instance_id,
            "label": labels[instance.category_id],
            "key_rle": instance.segmentations[key],
            "reference_rle": instance.segmentations[reference] if reference != key else None,
        }
        for instance in video.instances
        if not instance.iscrowd
        and (instance.segmentations[key] or instance.segmentations[reference])
    ]
    return _planned(video, (key, reference), instances)


def _planned(video: VideoRecord, indices: tuple[int, ...], instances: Instances) -> Planned:
    return Planned(
        video_id=video.video_id,
        size=video.size,
        indices=indices,
        frames=tuple(video.frames[index] for index in indices),
        instances=instances,
    )


def _corners(box: Box | None) -> list[float] | None:
    """(x, y, width, height) as xyxy."""
    return None if box is None else [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def fill_frames(
    plan: Sequence[Planned], config: PairConfig
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """FRAMES rows of the frames that can be read, and the rejects of the others."""
    encoded, faults = _read(plan, config)
    stored = []
    for row in plan:
        (name,) = row.frames
        if name not in encoded:
            continue
        size = _stored_size(row.size, config.max_side)
        instances = _resized(row, size, ("rle",))
        if size != row.size:
            scale = [size[1] / row.size[1], size[0] / row.size[0]] * 2
            for one in instances:
                one["box"] = one["box"] and [a * b for a, b in zip(one["box"], scale, strict=True)]
        stored.append(
            {
                "video_id": row.video_id,
                "frame_index": row.indices[0],
                "height": size[0],
                "width": size[1],
                "jpeg": encoded[name],
                "instances": instances,
            }
        )
    return stored, faults


def fill_pairs(
    plan: Sequence[Planned], config: PairConfig
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """PAIRS rows of the pairs whose frames can be read, and the rejects of the others."""
    encoded, faults = _read(plan, config)
    stored = []
    for row in plan:
        if not all(name in encoded for name in row.frames):
            continue
        size = _stored_size(row.size, config.max_side)
        key, reference = row.indices
        stored.append(
            {
                "video_id": row.video_id,
                "key_index": key,
                "reference_index": reference,
                "height": size[0],
                "width": size[1],
                "key_jpeg": encoded[row.frames[0]],
                # A frame paired with itself is stored once.
                "reference_jpeg": b"" if key == reference else encoded[row.frames[1]],
                "instances": _resized(row, size, ("key_rle", "reference_rle")),
            }
        )
    return stored, faults


def _read(plan: Iterable[Planned], config: PairConfig) -> tuple[dict[str, bytes], list[Reject]]:
    """Frames as they are stored by their references, each read once, video files forwards."""
    wanted = {name: row for row in plan for name in row.frames}
    encoded: dict[str, bytes] = {}
    faults: dict[str, Reject] = {}
    for path, group in frames.grouped(list(wanted)):
        with contextlib.ExitStack() as opened:
            reader: frames.VideoReader | None = None
            for reference in group:
                row = wanted[reference]
                try:
                    if reader is None and reference != path:  # a frame of a video file
                        reader = opened.enter_context(
                            frames.VideoReader(path, video_id=row.video_id)
                        )
                    encoded[reference] = frames.read_encoded(
                        reference,
                        video_id=row.video_id,
                        size=row.size,
                        stored_size=_stored_size(row.size, config.max_side),
                        quality=config.jpeg_quality,
                        reader=reader,
                    )
                except VideoError as error:
                    faults[reference] = Reject(*error.args)
    return encoded, [faults[name] for name in sorted(faults)]


def _resized(row: Planned, size: tuple[int, int], masks: Sequence[str]) -> Instances:
    """The instances of a row with their masks at the stored size."""
    if size == row.size:
        return row.instances
    instances = [
        {**one, **{name: _resize_mask(one[name], row.size, size) for name in masks}}
        for one in row.instances
    ]
    # A few pixels may vanish; an object that is in no frame of the row any more is none.
    return [one for one in instances if any(one[name] for name in masks)]


def _stored_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) with the longer side at most max_side; never larger. 0: unchanged."""
    if max_side == 0 or max(size) <= max_side:
        return size
    scale = max_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize_mask(
    counts: bytes | None, size: tuple[int, int], stored: tuple[int, int]
) -> bytes | None:
    """A mask at the stored size, nearest pixel; None where nothing of it is left."""
    if counts is None:
        return None
    from idol.masks import rle

    rows, columns = (
        # The source pixel under the centre of each target pixel.
        np.minimum((np.arange(target) + 0.5) * source / target, source - 1).astype(np.intp)
        for source, target in zip(size, stored, strict=True)
    )
    small = rle.decode_masks([counts], size)[0][np.ix_(rows, columns)]
    return rle.encode_masks(small[None])[0] if small.any() else None
