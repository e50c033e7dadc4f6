"""Several directories as one: which of them each place of each batch draws from, by arithmetic.

Place p of the batch of step s belongs to a point of [0, 1), and a directory to an interval as long
as its share. The points of a batch are equally spaced, so a batch has the shares to one place; from
step to step all move on by the golden ratio, so a place has them too over any stretch of steps
(a Weyl sequence). A place reads a directory of its own accord, as if the others were not there: its
n-th sample of a directory is the one that it would have at step n of training on it alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from idol.arrays import Ints
from pipelines.batches.samples import Sample, Samples

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd
_BLOCK = 1 << 12  # steps at a time


class DirectoryOrder:
    """The directory of every place and step.

    weights: of the directories, in relation to one another
    batch:   places of a batch
    group:   places of a batch that always have the same directory (VideoOrder); the last group may
             be smaller
    """

    def __init__(self, weights: Sequence[float], batch: int, group: int, *, seed: int) -> None:
        # Whole numbers of 64 bits instead of [0, 1): the same on every machine, at any step.
        shares = np.cumsum(np.asarray(weights, np.float64)) / np.sum(weights)
        ends = [min(int(share * 2**64), 2**64 - 1) for share in shares.tolist()]
        self._ends = np.array(ends[:-1], np.uint64)
        self._count = len(ends)
        self._group, self._groups = group, -(-batch // group)
        rng = np.random.default_rng([seed % 2**64, 6])
        self._first = int(rng.integers(2**64, dtype=np.uint64))

    def directories(self, place: int, start: int, stop: int) -> Ints:
        """(stop - start,) the directory of a place at those steps."""
        group = place // self._group
        offset = (self._first + group * 2**64 // self._groups) % 2**64
        points = np.arange(start, stop, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(offset)
        found: Ints = np.searchsorted(self._ends, points, side="right").astype(np.int64)
        return found

    def used(self, place: int, step: int) -> Ints:
        """(directories,) how often a place has drawn from each before a step."""
        total = np.zeros(self._count, np.int64)
        for start in range(0, step, _BLOCK):
            found = self.directories(place, start, min(start + _BLOCK, step))
            total += np.bincount(found, minlength=self._count)
        return total


class JointSamples:
    """Directories as one.

    samples: of each directory, for batches of as many places
    names:   of each directory, for messages
    pseudo:  of each, whether its pairs are two views of one image: those alone are augmented
             independently of one another
    order:   which directory a place draws from
    """

    def __init__(
        self,
        samples: Sequence[Samples],
        names: Sequence[str],
        pseudo: Sequence[bool],
        order: DirectoryOrder,
    ) -> None:
        self._samples, self._names, self._pseudo, self._order = samples, names, pseudo, order

    def __len__(self) -> int:
        return sum(map(len, self._samples))

    def name(self, rank: int, step: int) -> str:
        """The directory and the frames that a place has at a step, for a message."""
        (chosen,) = self._order.directories(rank, step, step + 1).tolist()
        used = int(self._order.used(rank, step)[chosen])
        return f"{self._samples[chosen].name(rank, used)} of {self._names[chosen]}"

    def stream(self, rank: int, step: int) -> Iterator[Callable[[], Sample]]:
        """What a place of the batch has from a step on; a directory is read when it is due."""
        used = self._order.used(rank, step).tolist()
        streams = [s.stream(rank, n) for s, n in zip(self._samples, used, strict=True)]
        for start in itertools.count(step, _BLOCK):
            for chosen in self._order.directories(rank, start, start + _BLOCK).tolist():
                yield partial(self._sample, next(streams[chosen]), self._pseudo[chosen])

    @staticmethod
    def _sample(drawn: Callable[[], Sample], pseudo: bool) -> Sample:
        return drawn()._replace(independent=pseudo)
