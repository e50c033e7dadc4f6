"""Masks as COCO writes them: any written form to compressed counts, and a safe reading of those."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = 5  # of a number in every character; the sixth says that more characters follow
_MAX_CHARACTERS = 7  # 35 bits: more than any 32-bit run length needs
_AT_ONCE = 1 << 18  # characters read in one pass; larger arrays leave the cache, 1.6 times slower


def measure(counts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels covered by and foreground area of N compressed masks, without making a picture.

    pycocotools reads past the end of a truncated string and believes any run length, so what came
    from outside is measured here first. Whole sets of masks are read in one vectorised pass.

    counts:  N compressed run-length strings
    returns: (N,) sum of all runs, which must be height * width, and -1 for an unreadable string;
             (N,) sum of the foreground runs
    """
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    if len(counts) > 1 and lengths.sum() > _AT_ONCE:
        cuts = np.searchsorted(np.cumsum(lengths), np.arange(_AT_ONCE, lengths.sum(), _AT_ONCE))
        edges = [0, *np.unique(cuts[(cuts > 0)]).tolist(), len(counts)]
        parts = [_measure(counts[a:b], lengths[a:b]) for a, b in pairwise(edges)]
        return np.concatenate([p for p, _ in parts]), np.concatenate([a for _, a in parts])
    return _measure(counts, lengths)


def _measure(
    counts: Sequence[bytes], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    total = len(counts)
    pixels = np.zeros(total, np.int64)
    areas = np.zeros(total, np.int64)
    characters = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    if not len(characters):
        return pixels, areas
    owner = np.repeat(np.arange(total), lengths)  # mask of each character
    bad = np.bincount(owner, (characters < 0) | (characters > 63), total) > 0
    last = (characters & 0x20) == 0  # of its number
    bad |= (lengths > 0) & ~last[np.maximum(np.cumsum(lengths), 1) - 1]
    last |= np.diff(owner, append=-1) != 0  # so that a truncated mask stays out of its neighbour

    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    place = np.arange(len(characters)) - np.repeat(starts, digits)
    number_owner = owner[starts]
    bad |= np.bincount(number_owner, digits > _MAX_CHARACTERS, total) > 0
    place = np.minimum(place, _MAX_CHARACTERS)
    values = np.add.reduceat((characters & 0x1F) << (_BITS * place), starts)
    negative = (characters[ends] & 0x10) != 0
    values -= np.where(negative, 1 << (_BITS * np.minimum(digits, _MAX_CHARACTERS)), 0)

    # From the third number on each is the difference to the run two before. So runs form two lanes,
    # background and foreground, each a running sum; only the very first run stands alone.
    numbers = np.bincount(number_owner, minlength=total)
    first_number = np.cumsum(numbers) - numbers
    local = np.arange(len(values)) - first_number[number_owner]
    rows = (numbers + 1) // 2
    first_row = np.cumsum(rows) - rows
    lanes = np.zeros((int(rows.sum()), 2), np.int64)
    lanes[first_row[number_owner] + local // 2, local % 2] = values
    row_owner = np.repeat(np.arange(total), rows)
    opening = lanes[first_row[row_owner]]  # (rows, 2) first row of the same mask
    runs = np.cumsum(lanes, axis=0)
    base = runs[first_row[row_owner]]
    runs[:, 1] -= base[:, 1] - opening[:, 1]
    head = np.zeros(len(runs), bool)
    head[first_row[rows > 0]] = True
    runs[:, 0] -= np.where(head, base[:, 0] - opening[:, 0], base[:, 0])
    odd = (rows > 0) & (numbers % 2 == 1)
    runs[(first_row + rows - 1)[odd], 1] = 0  # the lane's empty last place
    bad |= np.bincount(row_owner, (runs < 0).any(axis=1), total) > 0

    filled = rows > 0
    pixels[filled] = np.add.reduceat(runs.sum(axis=1), first_row[filled])
    areas[filled] = np.add.reduceat(runs[:, 1], first_row[filled])
    pixels[bad] = -1
    areas[bad] = 0
    return pixels, areas


def compress(segmentation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """One frame's segmentation in any form that COCO allows, as a compressed RLE.

    segmentation: None or [] (absent), a list of polygons [x0, y0, x1, y1, ...] in pixels, or
                  {"size": [h, w], "counts": list of runs or compressed string}
    size:         (height, width) that polygons are drawn on
    returns:      {"size": [h, w], "counts": bytes}, or None where absent
    Errors: ValueError saying what is not readable; the caller knows where it stood.
    """
    from pycocotools import mask as coco_mask

    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    "a polygon is a list of at least three x, y pairs, "
                    f"got {str(polygon)[:60]}; write an absent mask as null"
                )
        try:
            corners = [[float(v) for v in polygon] for polygon in segmentation]
        except (TypeError, ValueError) as error:
            raise ValueError(f"a polygon holds something that is no number: {error}") from error
        if not np.isfinite(np.concatenate(corners)).all():
            raise ValueError("a polygon has a coordinate that is not finite")
        drawn = coco_mask.merge(coco_mask.frPyObjects(corners, *size))
        return {"size": list(drawn["size"]), "counts": drawn["counts"]}
    mask_size = _size(segmentation)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(c, int) and 0 <= c < 2**32 for c in counts):
            raise ValueError("run lengths must be whole numbers from 0")
        if sum(counts) != mask_size[0] * mask_size[1]:
            raise ValueError(
                f"runs add up to {sum(counts)} pixels, size {list(mask_size)} has "
                f"{mask_size[0] * mask_size[1]}"
            )
        written = coco_mask.frPyObjects(
            {"size": list(mask_size), "counts": counts}, mask_size[0], mask_size[1]
        )
        return {"size": list(mask_size), "counts": written["counts"]}
    return {"size": list(mask_size), "counts": as_bytes(counts)}


def as_bytes(counts: Any) -> bytes:
    """Compressed counts as bytes; JSON carries them as text. ValueError for anything else."""
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str) and counts.isascii():
        return counts.encode("ascii")
    raise ValueError(
        f"counts must be a compressed RLE string, got {str(counts)[:40]!r}. "
        "pycocotools.mask.encode (or frPyObjects) makes one"
    )


def _size(segmentation: Any) -> tuple[int, int]:
    """(height, width) of an RLE dictionary; ValueError where it is none."""
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(
            'a mask is null or {"size": [height, width], "counts": ...}, '
            f"got {str(segmentation)[:60]}"
        )
    size = segmentation["size"]
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(isinstance(s, int) and 0 < s < 2**16 for s in size)
    ):
        raise ValueError(f"a mask's size is [height, width] in pixels, got {size}")
    return size[0], size[1]


def check(masks: Sequence[dict[str, Any]]) -> tuple[NDArray[np.int64], int | None]:
    """Areas of N compressed masks, and the first that does not fill its own size.

    masks:   N {"size": [h, w], "counts": bytes}
    returns: (N,) foreground pixels; position of the first unreadable mask, or None
    """
    pixels, areas = measure([mask["counts"] for mask in masks])
    wanted = np.fromiter((m["size"][0] * m["size"][1] for m in masks), np.int64, len(masks))
    wrong = np.flatnonzero(pixels != wanted)
    return areas, int(wrong[0]) if len(wrong) else None
