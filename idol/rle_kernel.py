"""The measuring of run-length strings, compiled: for sets so large that compiling pays.

Import this only where numba is known to be wanted: that alone takes half a second.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def _measure(
    characters: NDArray[np.uint8],
    limits: NDArray[np.int64],
    pixels: NDArray[np.int64],
    areas: NDArray[np.int64],
) -> None:
    start = 0
    for mask in range(len(limits)):
        stop = limits[mask]
        place = start
        before, last, total, area, numbers = 0, 0, 0, 0, 0
        readable = True
        while place < stop and readable:
            number: Any = 0
            digits, more = 0, True
            while more and readable:
                if place >= stop or digits >= 7:
                    readable = False
                    break
                value = np.int64(characters[place]) - 48
                if value < 0 or value > 63:
                    readable = False
                    break
                place += 1
                number |= (value & 31) << (5 * digits)
                digits += 1
                more = (value & 32) != 0
                if not more and (value & 16) != 0:
                    number -= np.int64(1) << (5 * digits)
            # From the fourth number on each is the difference to the run two before.
            if numbers > 2:
                number += before
            before, last = last, number
            if number < 0:
                readable = False
            total += number
            if numbers % 2 == 1:
                area += number
            numbers += 1
        pixels[mask] = total if readable else -1
        areas[mask] = area if readable else 0
        start = stop


def _compiled() -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(_measure)
    except RuntimeError:  # nowhere to keep the compiled code, as where this package is read-only
        return numba.njit(nogil=True)(_measure)


_fast = _compiled()


def measure(
    counts: bytes, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `idol.rle.measure`, of strings laid end to end.

    counts:  all characters
    lengths: (N,) of every string
    returns: (N,) sums of runs, -1 where unreadable; (N,) foreground areas
    """
    pixels, areas = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    _fast(np.frombuffer(counts, np.uint8), np.cumsum(lengths), pixels, areas)
    return pixels, areas
