"""Greedy suppression; without torch, for trackers of exported networks run without it."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt


def greedy(conflict: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Of rows in descending score those that no kept row before them conflicts with.

    conflict: (N, N) whether two rows are too much alike; symmetric, its diagonal does not count
    returns:  (n,) kept rows, ascending
    """
    later = conflict & _above_diagonal(len(conflict))
    alive = np.ones(len(conflict), np.bool_)
    for i in np.flatnonzero(later.any(axis=1)):
        if alive[i]:
            alive &= ~later[i]
    return np.flatnonzero(alive)


@functools.lru_cache(maxsize=64)  # a tracker asks for the same few sizes in every frame
def _above_diagonal(size: int) -> npt.NDArray[np.bool_]:
    above = np.triu(np.ones((size, size), np.bool_), k=1)
    above.setflags(write=False)
    return above
