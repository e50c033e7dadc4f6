"""Run-length strings measured and intersected by compiled code, where there is enough of them.

A mask becomes one bit per pixel, in words of 64: a bit is turned at every border between two runs,
and a running exclusive or over the bits fills what lies between. Pixels that two masks share are
then counted 64 at a time, however frayed their outlines are.

Import this only where numba is known to be wanted: that alone takes half a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from idol.arrays import Bools, Ints

Tracks = Sequence[Sequence[bytes | None]]

_NOT_A_DIGIT = ~np.int64(63)
_ONE = np.uint64(1)
_NONE = np.uint64(0)
_LAST = np.uint64(63)
# Distances of the running exclusive or within a word: after each step a bit has seen twice as many.
_S1, _S2, _S4, _S8, _S16, _S32 = (np.uint64(1 << k) for k in range(6))


def compiled(function: Any) -> Any:
    """A function to be compiled when called; what comes of it is kept for the next process."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere to keep the compiled code, as where this package is read-only
        return numba.njit(nogil=True)(function)


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _ones(_typing: Any, _word: Any) -> Any:
    """Number of bits of a word that are set: one instruction, which Python does not offer."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), emit


@compiled
def _read(
    characters: Any, start: int, stop: int, pixels: int, runs: Any, words: Any, mark: bool
) -> Any:
    """Read one string; with mark also turn its borders in words, which are all 0 before.

    pixels:  height * width; more makes the string unreadable
    runs:    room for stop - start numbers
    returns: sum of runs, -1 if unreadable; foreground area; first and last word with a bit, of
             which the last is smaller where there is no foreground
    """
    # Characters to numbers, without a jump that depends on them: a processor that guesses where
    # numbers end would guess wrong all the time. Unsigned places spare the test for negative
    # ones, which count from the end.
    size = np.uintp(0)
    number, shift, bad = np.int64(0), np.int64(0), np.int64(0)
    for place in range(np.uintp(start), np.uintp(stop)):
        digit = np.int64(characters[place]) - 48
        # A seventh character above 1 makes a number that pycocotools reads as another one.
        bad |= digit | (30 - shift) | ((1 - digit) & (29 - shift))
        number |= (digit & 31) << shift
        unused = 59 - shift
        runs[size] = number << unused >> unused
        more = (digit >> 5) & 1
        size += np.uintp(1 - more)
        number &= -more
        shift = (shift + 5) & -more
    low, high = 1, 0
    if bad & _NOT_A_DIGIT or shift:
        return -1, 0, low, high
    older, old, total, area = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for n in range(size):
        number = runs[n]
        # From the fourth number on each is the difference to the run two before.
        if n > 2:
            number += older
        older, old = old, number
        total += number
        if number < 0 or total > pixels:
            if mark:
                words[low : high + 1] = _NONE
            return -1, 0, 1, 0
        area += number & -np.int64(n & np.uintp(1))
        if mark:
            high = total >> 6
            if n == 0:
                low = high
            words[np.uintp(high)] ^= _ONE << np.uint64(total & 63)
    if mark and size & np.uintp(1):  # a background run at the end has no foreground behind it
        words[total >> 6] ^= _ONE << np.uint64(total & 63)
        if size == 1:
            low, high = 1, 0
    return total, area, low, high


@compiled
def _fill(words: Any) -> None:
    """Turn borders into foreground: bit after bit the exclusive or of all before it."""
    for k in range(len(words)):
        word = words[k]
        word ^= word << _S1
        word ^= word << _S2
        word ^= word << _S4
        word ^= word << _S8
        word ^= word << _S16
        word ^= word << _S32
        words[k] = word
    inside = _NONE
    for k in range(len(words)):
        word = words[k]
        words[k] = word ^ inside
        inside ^= _NONE - (word >> _LAST)


@compiled
def _common(one: Any, other: Any) -> Any:
    """Bits that are set in both."""
    count = _NONE
    for k in range(len(one)):
        count += _ones(one[k] & other[k])
    return np.int64(count)


@compiled
def _measure(characters: Any, limits: Any, pixels: Any, areas: Any) -> None:
    start = 0
    nothing = np.zeros(1, np.uint64)
    longest = 1
    for mask in range(len(limits)):
        longest = max(longest, limits[mask] - start)
        start = limits[mask]
    runs = np.zeros(longest, np.int64)
    start = 0
    for mask in range(len(limits)):
        total, area, _, _ = _read(characters, start, limits[mask], 1 << 40, runs, nothing, False)
        pixels[mask] = total
        areas[mask] = area
        start = limits[mask]


@compiled
def _overlap(
    characters: Any,
    starts: Any,
    lengths: Any,
    true_characters: Any,
    true_starts: Any,
    true_lengths: Any,
    wanted: Any,
    pixels: int,
    longest: int,
    areas: Any,
    shared: Any,
) -> bool:
    """Fill areas, and add shared pixels to `shared`, one row per frame or one for all.

    returns: False if a true mask is unreadable; one that is not true has the area -1
    """
    number, frames = starts.shape
    num_truth = len(true_starts)
    runs = np.zeros(1 + longest, np.int64)
    words = np.zeros((pixels >> 6) + 1, np.uint64)
    true_words = np.zeros((num_truth, len(words)), np.uint64)
    low = np.zeros(num_truth, np.int64)
    high = np.zeros(num_truth, np.int64)
    step = 1 if len(shared) == frames else 0
    for t in range(frames):
        for g in range(num_truth):
            low[g], high[g] = 1, 0
            if true_lengths[g, t] >= 0 and wanted[:, g].any():
                a = true_starts[g, t]
                total, _, low[g], high[g] = _read(
                    true_characters, a, a + true_lengths[g, t], pixels, runs, true_words[g], True
                )
                if total != pixels:
                    return False
                _fill(true_words[g][low[g] : high[g] + 1])
        for n in range(number):
            if lengths[n, t] < 0:
                continue
            mark = (wanted[n] & (low <= high)).any()
            a = starts[n, t]
            total, area, first, last = _read(
                characters, a, a + lengths[n, t], pixels, runs, words, mark
            )
            areas[n, t] = area if total == pixels else -1
            if not mark or first > last:
                continue
            if total != pixels:
                words[first : last + 1] = _NONE
                continue
            _fill(words[first : last + 1])
            for g in range(num_truth):
                a, b = max(first, low[g]), min(last, high[g]) + 1
                if wanted[n, g] and a < b:
                    shared[t * step, n, g] += _common(words[a:b], true_words[g][a:b])
            words[first : last + 1] = _NONE
        for g in range(num_truth):
            true_words[g, low[g] : high[g] + 1] = _NONE
    return True


def measure(counts: bytes, lengths: Ints) -> tuple[Ints, Ints]:
    """As `rle.measure`, of strings laid end to end.

    counts:  all characters
    lengths: (N,) of every string
    returns: (N,) sums of runs, -1 where unreadable; (N,) foreground areas
    """
    pixels, areas = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    _measure(np.frombuffer(counts, np.uint8), np.cumsum(lengths), pixels, areas)
    return pixels, areas


def overlap(
    found: Tracks, truth: Tracks, wanted: Bools, pixels: int, length: int, *, per_frame: bool
) -> tuple[Ints, Ints]:
    """Areas of N tracks, and pixels that they share with G others in T frames.

    found:     N sequences of T compressed run-length strings, None where absent
    truth:     G sequences likewise
    wanted:    (N, G) pairs to be measured; 0 for others
    pixels:    height * width of every mask
    length:    T
    per_frame: one result for every frame; False: summed over the frames
    returns:   (N, T), 0 where absent and -1 where a mask is unreadable or does not fill the pixels;
               (T, N, G), or (1, N, G)
    Raises: ValueError: a mask of the truth is unreadable or does not fill the pixels.
    """
    areas = np.zeros((len(found), length), np.int64)
    shared = np.zeros((length if per_frame else 1, *wanted.shape), np.int64)
    one, other = _packed(found, length), _packed(truth, length)
    longest = max(one[2].max(initial=0), other[2].max(initial=0))
    if not _overlap(*one, *other, wanted, pixels, longest, areas, shared):
        raise ValueError(f"a true mask is no readable RLE of {pixels} pixels")
    return areas, shared


def _packed(tracks: Tracks, length: int) -> tuple[NDArray[np.uint8], Ints, Ints]:
    """All characters in one place; (N, T) where those of a mask begin, and how many (-1: none)."""
    counts = [mask for track in tracks for mask in track]
    lengths = np.array([-1 if mask is None else len(mask) for mask in counts], np.int64)
    stops = np.maximum(lengths, 0).cumsum()
    shape = (len(tracks), length)
    starts = (stops - np.maximum(lengths, 0)).reshape(shape)
    # bytes make a read-only array; numba would compile again for a writeable one.
    characters = np.frombuffer(b"".join(filter(None, counts)), np.uint8)
    return characters, starts, lengths.reshape(shape)


def prepare() -> None:
    """Compile everything, or load it, before processes are forked."""
    measure(b"0", np.ones(1, np.int64))
    masks = [[b"1"]]
    overlap(masks, masks, np.ones((1, 1), np.bool_), 1, 1, per_frame=False)
