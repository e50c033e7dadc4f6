"""Run-length strings straight from masks as bits, as they come from a GPU; compiled by numba.

Importing this takes half a second, so do it inside the function that needs it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from idol.arrays import Ints
from idol.masks.kernels import compiled

_WORD = 32
_MAX_CHARACTERS = 7  # of a number: 35 bits


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _lowest(word: Any) -> int:
    """Number of the lowest bit that is set; one is."""
    place = 0
    if word & np.uint32(0xFFFF) == 0:
        word >>= np.uint32(16)
        place += 16
    if word & np.uint32(0xFF) == 0:
        word >>= np.uint32(8)
        place += 8
    if word & np.uint32(0xF) == 0:
        word >>= np.uint32(4)
        place += 4
    if word & np.uint32(0x3) == 0:
        word >>= np.uint32(2)
        place += 2
    if word & np.uint32(0x1) == 0:
        place += 1
    return place


@compiled
def _encode(bits: NDArray[np.uint32], height: int, runs: Ints, text: NDArray[np.uint8]) -> int:
    """One mask (W, words) into text; returns its length. runs has a place for every change."""
    full, one = np.uint32(0xFFFFFFFF), np.uint32(1)
    number, run = 0, 0
    value = np.uint32(0)  # of the run at hand, in every bit
    for x in range(bits.shape[0]):
        left = height
        for j in range(bits.shape[1]):
            word = bits[x, j]
            count = min(left, _WORD)
            left -= count
            if count == _WORD and word == value:
                run += _WORD
                continue
            if count == _WORD and word == value ^ full:
                runs[number] = run
                number += 1
                value ^= full
                run = _WORD
                continue
            # Ones where the bit differs from the run's; each step ends a run at the lowest.
            done = 0
            rest = (word ^ value) & (full if count == _WORD else (one << np.uint32(count)) - one)
            while rest != 0:
                place = _lowest(rest)
                runs[number] = run + place - done
                number += 1
                value ^= full
                run, done = 0, place
                # What differed agrees now and the other way round; bits before it are over.
                keep = full << np.uint32(place)
                if count < _WORD:
                    keep &= (one << np.uint32(count)) - one
                rest = (word ^ value) & keep
            run += count - done
    runs[number] = run
    number += 1

    length = 0
    for k in range(number):
        rest = runs[k]
        if k > 2:  # from the fourth on, the difference to the run two before
            rest -= runs[k - 2]
        more = True
        while more:
            digit = rest & 31
            rest >>= 5
            more = rest != -1 if digit & 16 else rest != 0
            text[length] = digit + 48 + (32 if more else 0)
            length += 1
    return length


def encode(bits: NDArray[np.uint32], height: int) -> list[bytes]:
    """Compressed COCO counts of masks given as bits.

    bits:    (n, W, ⌈height / 32⌉) uint32; bit i of word j of column x is pixel (32 j + i, x)
    height:  of the masks; bits beyond it do not count
    returns: n strings, byte for byte those of pycocotools
    """
    masks, width, words = bits.shape
    if words != -(-height // _WORD):
        raise ValueError(
            f"bits of height {height} have {-(-height // _WORD)} words a column, got {words}"
        )
    bits = np.ascontiguousarray(bits)
    # Never written places of these cost nothing: the system hands out pages when they are touched.
    runs = np.empty(width * height + 1, np.int64)
    text = np.empty(len(runs) * _MAX_CHARACTERS, np.uint8)
    return [text[: _encode(bits[k], height, runs, text)].tobytes() for k in range(masks)]
