"""Planned pairs to rows of PAIRS: the frames are read, resized and encoded here, in Ray's tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from idol.config import PairConfig
from idol.ytvis.videos import Reject
from pipelines.errors import VideoError
from pipelines.sources import frames
from pipelines.sources.annotations import VideoRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPair:
    """A pair before its frames are read; instances as in PAIRS, at full size."""

    video_id: int
    key_index: int
    reference_index: int
    size: tuple[int, int]
    key_frame: str
    reference_frame: str
    instances: list[dict[str, Any]]


def planned(video: VideoRecord, key: int, reference: int, labels: Mapping[int, int]) -> PlannedPair:
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
    return PlannedPair(
        video_id=video.video_id,
        key_index=key,
        reference_index=reference,
        size=video.size,
        key_frame=video.frames[key],
        reference_frame=video.frames[reference],
        instances=instances,
    )


def fill(
    plan: Sequence[PlannedPair], config: PairConfig
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """PAIRS rows of the pairs whose frames can be read, and the rejects of the others.

    Every frame is read once, video files forwards.
    """
    wanted = {name: pair for pair in plan for name in (pair.key_frame, pair.reference_frame)}
    encoded: dict[str, bytes] = {}
    faults: dict[str, Reject] = {}
    for path, group in frames.grouped(list(wanted)):
        with contextlib.ExitStack() as opened:
            reader: frames.VideoReader | None = None
            for reference in group:
                pair = wanted[reference]
                try:
                    if reader is None and reference != path:  # a frame of a video file
                        reader = opened.enter_context(
                            frames.VideoReader(path, video_id=pair.video_id)
                        )
                    encoded[reference] = frames.read_encoded(
                        reference,
                        video_id=pair.video_id,
                        size=pair.size,
                        stored_size=_stored_size(pair.size, config.max_side),
                        quality=config.jpeg_quality,
                        reader=reader,
                    )
                except VideoError as error:
                    faults[reference] = Reject(*error.args)
    stored = [
        _row(pair, encoded, config.max_side)
        for pair in plan
        if pair.key_frame in encoded and pair.reference_frame in encoded
    ]
    return stored, [faults[name] for name in sorted(faults)]


def _row(pair: PlannedPair, encoded: Mapping[str, bytes], max_side: int) -> dict[str, Any]:
    size = _stored_size(pair.size, max_side)
    instances = pair.instances
    if size != pair.size:
        masks = ("key_rle", "reference_rle")
        instances = [
            {**one, **{name: _resize_mask(one[name], pair.size, size) for name in masks}}
            for one in instances
        ]
        # A few pixels may vanish; an object that is in neither frame any more is none.
        instances = [one for one in instances if any(one[name] for name in masks)]
    pseudo = pair.key_index == pair.reference_index
    return {
        "video_id": pair.video_id,
        "key_index": pair.key_index,
        "reference_index": pair.reference_index,
        "height": size[0],
        "width": size[1],
        "key_jpeg": encoded[pair.key_frame],
        # A frame paired with itself is stored once.
        "reference_jpeg": b"" if pseudo else encoded[pair.reference_frame],
        "instances": instances,
    }


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
