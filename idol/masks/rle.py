"""Masks as COCO writes them: any written form to compressed counts, and a safe reading of those."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = 5  # of a number in every character; the sixth says that more characters follow
_MAX_CHARACTERS = 7  # of a number; more than any run length of 31 bits needs
_AT_ONCE = 1 << 18  # characters read in one pass; larger arrays leave the cache, 1.6 times slower

_COMPILE_FROM = 12 << 20  # characters: a second of the vectorised passes below


def measure(counts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels covered by and foreground area of N compressed masks, without making a picture.

    pycocotools reads past the end of a truncated string and believes any run length, so what came
    from outside is measured here first. Whole sets of masks are read in one vectorised pass.

    counts:  N compressed run-length strings
    returns: (N,) sum of all runs, which must be height * width, and -1 for an unreadable string;
             (N,) sum of the foreground runs
    """
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    if compiled := kernel(int(lengths.sum())):
        measured: tuple[NDArray[np.int64], NDArray[np.int64]]
        measured = compiled.measure(b"".join(counts), lengths)
        return measured
    if len(counts) > 1 and lengths.sum() > _AT_ONCE:
        cuts = np.searchsorted(np.cumsum(lengths), np.arange(_AT_ONCE, lengths.sum(), _AT_ONCE))
        edges = [0, *np.unique(cuts[(cuts > 0)]).tolist(), len(counts)]
        parts = [_measure(counts[a:b], lengths[a:b]) for a, b in pairwise(edges)]
        return np.concatenate([p for p, _ in parts]), np.concatenate([a for _, a in parts])
    return _measure(counts, lengths)


class _Read:
    """How many characters this process has read, and the compiled code once it is there."""

    characters = 0
    kernel: ModuleType | None = None
    asked = False


def compile_kernel() -> ModuleType | None:
    """Have long sets of masks read and intersected by compiled code from now on.

    Called by itself after so much reading that it pays; where many processes are about to be
    forked, or many masks to be read, before that. Compiling takes seconds once on a machine, and
    loading what was compiled about one. Without numba nothing changes.

    returns: `idol.masks.kernels`, or None without numba
    """
    if not _Read.asked:
        _Read.asked = True
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            # What numba thinks of the versions around it is not the caller's concern.
            warnings.simplefilter("ignore")
            from idol.masks import kernels

            kernels.prepare()
            _Read.kernel = kernels
    return _Read.kernel


def kernel(characters: int = 0) -> ModuleType | None:
    """The compiled code, if it is there, or if so many characters more make it worth its start."""
    _Read.characters += characters
    if _Read.characters > _COMPILE_FROM:
        compile_kernel()
    return _Read.kernel


def _measure(
    counts: Sequence[bytes], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    total = len(counts)
    pixels = np.zeros(total, np.int64)
    areas = np.zeros(total, np.int64)
    characters = np.frombuffer(b"".join(counts), np.uint8) - np.uint8(48)
    if not len(characters):
        return pixels, areas
    limits = np.cumsum(lengths)
    bad = np.zeros(total, bool)
    bad[np.searchsorted(limits, np.flatnonzero(characters > 63), side="right")] = True
    last = characters & 0x20 == 0  # of its number
    final = np.flatnonzero(lengths)
    bad[final[~last[limits[final] - 1]]] = True
    last[limits[final] - 1] = True  # so that a truncated mask stays out of its neighbour

    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    values = (characters[starts] & 0x1F).astype(np.int64)
    longer = np.flatnonzero(ends > starts)
    place = 1
    while len(longer) and place < _MAX_CHARACTERS:
        at = starts[longer] + place
        values[longer] |= (characters[at] & 0x1F).astype(np.int64) << (_BITS * place)
        longer = longer[ends[longer] > at]
        place += 1
    bad[np.searchsorted(limits, starts[longer], side="right")] = True
    # pycocotools shifts 32-bit numbers, so a seventh character above 1 makes another number there.
    wide = ends[(ends - starts == _MAX_CHARACTERS - 1) & (characters[ends] & 0x1F > 1)]
    bad[np.searchsorted(limits, wide, side="right")] = True
    negative = np.flatnonzero(characters[ends] & 0x10)
    digits = np.minimum(ends[negative] - starts[negative] + 1, _MAX_CHARACTERS)
    values[negative] -= 1 << (_BITS * digits)

    # From the third number on each is the difference to the run two before. So runs form two lanes,
    # background and foreground, and each is a running sum, in which the very first run has no part.
    first_number = np.searchsorted(ends, limits - lengths)
    numbers = np.diff(first_number, append=len(ends))
    rows = (numbers + 1) // 2
    first_row = np.cumsum(rows) - rows
    filled = np.flatnonzero(numbers)
    opening = values[first_number[filled]]
    lanes = np.zeros((int(rows.sum()), 2), np.int64)
    shift = np.repeat(2 * first_row - first_number, numbers)
    lanes.reshape(-1)[np.arange(len(values)) + shift] = values
    lanes[first_row[filled], 0] = 0
    runs = np.cumsum(lanes, axis=0)
    before = np.concatenate([[[0, 0]], runs])[first_row]
    runs -= np.repeat(before, rows, axis=0)
    odd = np.flatnonzero(numbers % 2)
    runs[first_row[odd] + rows[odd] - 1, 1] = 0  # the lane's empty last place
    below = np.flatnonzero((runs < 0).any(axis=1))
    bad[np.searchsorted(np.cumsum(rows), below, side="right")] = True
    bad[filled[opening < 0]] = True

    sums = np.add.reduceat(runs, first_row[filled], axis=0)
    pixels[filled] = sums.sum(axis=1) + opening
    areas[filled] = sums[:, 1]
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
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        from pycocotools import mask as coco_mask

        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    "a polygon is a list of at least three x, y pairs, "
                    f"got {str(polygon)[:60]}; write an absent mask as null"
                )
        try:
            corners = [[float(v) for v in polygon] for polygon in segmentation]
        except (TypeError, ValueError, OverflowError) as error:
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
        from pycocotools import mask as coco_mask

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


def check_tracks(
    tracks: Sequence[Sequence[dict[str, Any] | None]], length: int
) -> tuple[NDArray[np.int64], tuple[int, int] | None]:
    """Areas of N tracks' masks frame by frame, and the first that does not fill its own size.

    tracks:  N sequences of at most `length` masks {"size": [h, w], "counts": bytes}, None if absent
    returns: (N, length) foreground pixels, 0 where absent; (track, frame) of the first unreadable
             mask, or None
    """
    areas = np.zeros((len(tracks), length), np.int64)
    places = [
        (n, t) for n, track in enumerate(tracks) for t, m in enumerate(track) if m is not None
    ]
    if not places:
        return areas, None
    measured, wrong = check([m for track in tracks for m in track if m is not None])
    areas[tuple(np.array(places).T)] = measured
    return areas, None if wrong is None else places[wrong]
