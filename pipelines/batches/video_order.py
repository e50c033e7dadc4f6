"""Which visits to videos make the batch of a step: arithmetic, as `row_order` for stored pairs.

Released sampling (specification 5.1): an endless stream of permutations of all videos is dealt to
the GPUs; each collects wide and upright videos apart, and has a batch when it has enough of either.
Here a batch is dealt to groups of `train.group_pairs` pairs, however many workers play them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from idol.arrays import Bools, Ints

_BLOCK = 256  # batches drawn at a time


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit to a video.

    number: of the visit, over all videos and from the first step on
    video:  position of the video
    """

    number: int
    video: int


class VideoOrder:
    """The visits of every step.

    wide:  (V,) whether a video is wider than high
    batch: visits of a whole batch
    group: visits that are all to wide or all to other videos; the last group of a batch may be
           smaller
    """

    def __init__(self, wide: Bools, batch: int, group: int, *, seed: int) -> None:
        self._wide, self._batch, self._group, self._seed = wide, batch, group, seed
        self._dealt = functools.lru_cache(maxsize=8)(self._deal)  # groups are in the same passes

    def _deal(self, number: int) -> Ints:
        """The videos in the order of a pass."""
        rng = np.random.default_rng([self._seed % 2**64, number, 3])
        return rng.permutation(len(self._wide))

    def visits(self, rank: int, step: int) -> Iterator[Visit]:
        """What the rank-th place of a batch has from a step on."""
        group, place = divmod(rank, self._group)
        for visits in itertools.islice(self._groups(group), step, None):
            yield Visit(*visits[place].tolist())

    def _groups(self, group: int) -> Iterator[Ints]:
        """The visits of a group, step by step: (n, 2), the number and the video of each."""
        first = group * self._group
        places = np.arange(first, min(first + self._group, self._batch))
        # Of others and of wide videos, what waits for its group: rows (number, video).
        waiting = [np.zeros((0, 2), np.int64) for _ in range(2)]
        for block in itertools.count(0, _BLOCK):
            numbers = (np.arange(block, block + _BLOCK)[:, None] * self._batch + places).ravel()
            found = np.stack([numbers, self._videos(numbers)], 1)
            wide = self._wide[found[:, 1]]
            full = []
            for kind in (0, 1):
                every = np.concatenate([waiting[kind], found[wide == kind]])
                end = len(every) - len(every) % len(places)
                full.append(every[:end].reshape(-1, len(places), 2))
                waiting[kind] = every[end:]
            ready = np.concatenate(full)
            # A group is given out when its last video has come.
            yield from ready[np.argsort(ready[:, -1, 0])]

    def _videos(self, numbers: Ints) -> Ints:
        """The video of each visit."""
        passes, places = np.divmod(numbers, len(self._wide))
        videos = np.empty_like(numbers)
        for number in np.unique(passes).tolist():
            mine = passes == number
            videos[mine] = self._dealt(number)[places[mine]]
        return videos
