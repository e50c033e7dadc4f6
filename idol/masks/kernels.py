"""Run-length strings measured and intersected by compiled code, where there is enough of them.

A mask becomes one bit per pixel, in words of 64: a bit is turned at every border between two runs,
and a running exclusive or over the bits fills what lies between. Pixels that two masks share are
then counted 64 at a time, however frayed their outlines are.

Import this only where numba is known to be wanted: that alone takes half a second.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from idol.masks.packed import PackedMasks

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
def _repeats(characters: Any, starts: Any, lengths: Any) -> Any:
    """(N,) the first track with the same masks: one track is often submitted as many classes."""
    number, frames = starts.shape
    first = np.arange(number)
    for n in range(number):
        for m in range(n):
            if first[m] != m:
                continue
            same = True
            for t in range(frames):
                if lengths[n, t] != lengths[m, t]:
                    same = False
                    break
            t = 0
            while same and t < frames:
                a, b = starts[n, t], starts[m, t]
                for k in range(lengths[n, t]):
                    if characters[a + k] != characters[b + k]:
                        same = False
                        break
                t += 1
            if same:
                first[n] = m
                break
    return first


@compiled
def _longest(lengths: Any) -> int:
    longest = 0
    for row in lengths:
        for length in row:
            longest = max(longest, length)
    return longest


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
    shared: Any,
    areas: Any,
) -> bool:
    number, frames = starts.shape
    num_truth = len(true_starts)
    repeats = _repeats(characters, starts, lengths)
    needed = wanted.copy()
    for n in range(number):
        for g in range(num_truth):
            needed[repeats[n], g] |= wanted[n, g]
    tried = np.zeros(num_truth, np.bool_)
    rows_needed = np.zeros(number, np.bool_)
    for n in range(number):
        for g in range(num_truth):
            if needed[n, g]:
                tried[g] = True
                rows_needed[n] = True
    size = (pixels >> 6) + 1
    runs = np.zeros(1 + max(_longest(lengths), _longest(true_lengths)), np.int64)
    words = np.zeros(size, np.uint64)
    true_words = np.zeros((num_truth, size), np.uint64)
    low = np.zeros(num_truth, np.int64)
    high = np.zeros(num_truth, np.int64)
    step = 1 if len(shared) == frames else 0
    for t in range(frames):
        any_truth = False
        for g in range(num_truth):
            low[g], high[g] = 1, 0
            if tried[g] and true_lengths[g, t] >= 0:
                a = true_starts[g, t]
                total, _, low[g], high[g] = _read(
                    true_characters, a, a + true_lengths[g, t], pixels, runs, true_words[g], True
                )
                if total != pixels:
                    return False
                _fill(true_words[g][low[g] : high[g] + 1])
                any_truth |= low[g] <= high[g]
        for n in range(number):
            if lengths[n, t] < 0 or repeats[n] != n:
                continue
            a = starts[n, t]
            mark = any_truth and rows_needed[n]
            total, areas[n, t], first, last = _read(
                characters, a, a + lengths[n, t], pixels, runs, words, mark
            )
            if total != pixels:
                return False
            if not mark or first > last:
                continue
            _fill(words[first : last + 1])
            for g in range(num_truth):
                a, b = max(first, low[g]), min(last, high[g]) + 1
                if needed[n, g] and a < b:
                    shared[t * step, n, g] += _common(words[a:b], true_words[g][a:b])
            words[first : last + 1] = _NONE
        for g in range(num_truth):
            true_words[g, low[g] : high[g] + 1] = _NONE
    for n in range(number):
        if repeats[n] != n:
            areas[n] = areas[repeats[n]]
            shared[:, n] = shared[:, repeats[n]]
    return True


def measure(
    counts: bytes, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `rle.measure`, of strings laid end to end.

    counts:  all characters
    lengths: (N,) of every string
    returns: (N,) sums of runs, -1 where unreadable; (N,) foreground areas
    """
    pixels, areas = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    _measure(np.frombuffer(counts, np.uint8), np.cumsum(lengths), pixels, areas)
    return pixels, areas


def overlap(
    found: PackedMasks,
    truth: PackedMasks,
    wanted: NDArray[np.bool_],
    pixels: int,
    *,
    per_frame: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Pixels that N tracks share with G others in T frames, and areas of the tracks.

    found:     masks of the tracks; truth: masks of the others
    wanted:    (N, G) pairs to be measured; 0 for others
    pixels:    height * width of every mask
    per_frame: sum over the frames or not
    returns:   shared (T, N, G), or (1, N, G) summed, and areas (N, T), 0 where absent; None where
               a mask is unreadable or does not fill the pixels
    """
    number, frames = found[1].shape
    shared = np.zeros((frames if per_frame else 1, *wanted.shape), np.int64)
    areas = np.zeros((number, frames), np.int64)
    fine = _overlap(*_frozen(found), *_frozen(truth), wanted, pixels, shared, areas)
    return (shared, areas) if fine else None


def _frozen(masks: PackedMasks) -> PackedMasks:
    """Read-only characters always: to numba others are of another type, to be compiled again."""
    characters = masks.characters.view()
    characters.flags.writeable = False
    return masks._replace(characters=characters)


def prepare() -> None:
    """Compile everything, or load it, before threads or forked processes want it."""
    measure(b"0", np.ones(1, np.int64))
    one = np.zeros((1, 1), np.int64)
    masks = PackedMasks(np.frombuffer(b"1", np.uint8), one, one + 1)
    overlap(masks, masks, np.ones((1, 1), np.bool_), 1, per_frame=False)
