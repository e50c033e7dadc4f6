"""COCO's run-length strings (RLE): from any written form and from pixels, and back, safely.

A string holds the lengths of runs down the columns, background first. Each number is groups of 5
bits, lowest first, as characters from "0" on; 32 marks that another group follows, 16 of the last
group the sign. From the fourth number on, a number is the difference to the run two before.

pycocotools reads past the end of a truncated string and takes any run length, so strings from
outside are read here first. Few strings are read by numpy, 80 microseconds each; many by compiled
code, 240 MB/s, whose start costs 1.3 s (measured on a busy machine with 2 cores).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idol.arrays import Bools, Ints

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST = 7  # characters of a number: 31 bits, as many as pycocotools can read
_COMPILE_FROM = 20_000  # strings: more than a second of reading by numpy


def runs(counts: bytes) -> Ints | None:
    """Run lengths of a compressed string, background first; None if it is malformed.

    A number beyond 31 bits is malformed too: pycocotools would read another number.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(groups):
        return groups
    ends = np.flatnonzero(groups < 32)
    if not len(ends) or ends[-1] != len(groups) - 1 or groups.min() < 0 or groups.max() > 63:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    widths = ends - starts + 1
    if widths.max() > _LONGEST or (groups[ends[widths == _LONGEST]] > 1).any():
        return None
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, widths))
    numbers = np.add.reduceat((groups & 31) << shifts, starts)
    numbers -= np.where(groups[ends] & 16, 1 << (5 * widths), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return None if numbers.min() < 0 else numbers


def measure(counts: Sequence[bytes]) -> tuple[Ints, Ints]:
    """Pixels covered by and foreground area of N compressed masks, without making a picture.

    counts:  N compressed run-length strings
    returns: (N,) sum of all runs, which must be height * width, and -1 for an unreadable string;
             (N,) sum of the foreground runs, 0 for an unreadable string
    """
    if compiled := kernel(len(counts)):
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        measured: tuple[Ints, Ints] = compiled.measure(b"".join(counts), lengths)
        return measured
    pixels, areas = np.full(len(counts), -1, np.int64), np.zeros(len(counts), np.int64)
    for n, text in enumerate(counts):
        lengths_of_runs = runs(text)
        if lengths_of_runs is not None:
            pixels[n], areas[n] = lengths_of_runs.sum(), lengths_of_runs[1::2].sum()
    return pixels, areas


class _Read:
    """How many strings this process has read, and the compiled code once it is loaded."""

    strings = 0
    kernel: ModuleType | None = None


def compile_kernel() -> ModuleType:
    """Have masks measured and intersected by `idol.masks.kernels` from now on.

    This happens by itself after 20,000 strings. Call it before processes are forked. Compiling
    takes seconds once on a machine; loading what was compiled takes about one.
    """
    if _Read.kernel is None:
        with warnings.catch_warnings():
            # What numba thinks of the versions around it is not the caller's concern.
            warnings.simplefilter("ignore")
            from idol.masks import kernels

            kernels.prepare()
        _Read.kernel = kernels
    return _Read.kernel


def kernel(strings: int = 0) -> ModuleType | None:
    """The compiled code if it is loaded, or if reading so many strings more is worth its start."""
    _Read.strings += strings
    return compile_kernel() if _Read.strings > _COMPILE_FROM else _Read.kernel


def encode_masks(masks: Tensor | Bools | NDArray[np.uint8]) -> list[bytes]:
    """Run-length encode masks.

    masks:   (N, H, W) bool, or uint8 of 0 and 1; an array or a tensor
    returns: N compressed strings
    Raises: ValueError: masks does not have three axes, or no pixels.
    """
    import cv2

    array = masks if isinstance(masks, np.ndarray) else masks.cpu().numpy()
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(
            f"masks must have shape (N, H, W) with H, W > 0, got {array.shape}. "
            "Add the first axis with masks[None]."
        )
    # OpenCV transposes in tiles, several times faster than numpy.
    return encode_columns(cv2.transpose(mask) for mask in array.astype(np.uint8, copy=False))


def encode_columns(masks: Iterable[NDArray[np.uint8]]) -> list[bytes]:
    """As encode_masks, of masks given as (W, H): runs go down the columns."""
    from pycocotools import mask as coco_mask

    # One by one: a stack of full-size masks would cost more in fresh memory than it saves in calls.
    return [bytes(coco_mask.encode(columns.T[:, :, None])[0]["counts"]) for columns in masks]


def decode_masks(counts: Sequence[bytes | str], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The inverse of encode_masks.

    counts:  N compressed strings
    size:    (H, W)
    returns: (N, H, W) uint8, 0 or 1
    Raises: ValueError: the runs of a string do not fill the size; names its position.
    """
    import cv2

    height, width = size
    masks = np.empty((len(counts), height, width), np.uint8)
    for i, text in enumerate(counts):
        lengths = runs(text.encode() if isinstance(text, str) else text)
        if lengths is None or lengths.sum() != height * width:
            filled = (
                "is no compressed run-length encoding"
                if lengths is None
                else f"has runs of {lengths.sum()} pixels"
            )
            raise ValueError(
                f"counts[{i}] {filled}, but must encode a mask of height {height} and width "
                f"{width}. Is the size (height, width), and the counts compressed?"
            )
        values = np.arange(len(lengths), dtype=np.uint8) & 1  # runs alternate, background first
        masks[i] = cv2.transpose(np.repeat(values, lengths).reshape(width, height))
    return masks


def compress(segmentation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """One frame's segmentation in any form that COCO allows, as a compressed RLE.

    segmentation: None or [] (absent), a list of polygons [x0, y0, x1, y1, ...] in pixels, or
                  {"size": [h, w], "counts": list of runs or compressed string}
    size:         (height, width) that polygons are drawn on
    returns:      {"size": [h, w], "counts": bytes}, or None where absent
    Raises: ValueError: says what is not readable; the caller adds where it stood.
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
        raise ValueError(f"a mask's size is [height, width] in pixels, got {str(size)[:60]}")
    return size[0], size[1]


def check(masks: Sequence[dict[str, Any]]) -> tuple[Ints, int | None]:
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
) -> tuple[Ints, tuple[int, int] | None]:
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


def boxes(counts: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.float32]:
    """Tight boxes of N compressed masks, without making a picture.

    size:    (H, W)
    returns: (N, 4) float32 xyxy in pixels, right and bottom beyond the last one; zeros where a mask
             is empty
    """
    if not counts:
        return np.zeros((0, 4), np.float32)
    from pycocotools import mask as coco_mask

    found = coco_mask.toBbox([{"size": list(size), "counts": text} for text in counts])
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1).astype(np.float32)
