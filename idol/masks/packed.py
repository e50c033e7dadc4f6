"""The masks of many tracks with all their characters in one place, as compiled code takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class PackedMasks(NamedTuple):
    """The masks of N tracks in T frames, with all characters in one place.

    characters: (C,) uint8
    starts:     (N, T) where the characters of a mask begin
    lengths:    (N, T) their number, -1 where there is no mask
    """

    characters: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def pack(
    tracks: Sequence[Sequence[dict[str, Any] | None]], size: tuple[int, int], length: int
) -> PackedMasks | None:
    """The masks of N tracks as compiled code takes them (`rle.kernel`).

    tracks:  N sequences of masks {"size": [h, w], "counts": bytes}, None if absent
    size:    (height, width) that every mask must have; length: frames of every track
    returns: None where a track is of another length, or a mask of another size
    """
    lengths = np.full((len(tracks), length), -1, np.int64)
    counts: list[bytes] = []
    height, width = size
    for n, track in enumerate(tracks):
        if len(track) != length:
            return None
        for t, mask in enumerate(track):
            if mask is not None:
                mask_size = mask["size"]
                if mask_size[0] != height or mask_size[1] != width:
                    return None
                lengths[n, t] = len(mask["counts"])
                counts.append(mask["counts"])
    ends = np.cumsum(np.maximum(lengths, 0)).reshape(lengths.shape)
    starts = ends - np.maximum(lengths, 0)
    return PackedMasks(np.frombuffer(b"".join(counts), np.uint8), starts, lengths)
