"""Which rows of a prepared directory make the batch of a step: arithmetic, no file is read.

A batch of B pairs has one pair from each of B virtual ranks; each training worker plays some of
them. In every pass over the data the row groups are shuffled and dealt to the ranks one by one,
and a rank gives out the rows of its groups through a shuffle buffer. So which rows a step has does
not depend on the number of workers, and each group is read by one worker alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from idol.arrays import Ints


@dataclass(frozen=True, slots=True)
class Pass:
    """What one virtual rank does in one pass over the data.

    number: of the pass, from 0
    groups: its row groups, in the order in which they are read
    rows:   row numbers over the whole directory, in the order in which they are given out
    """

    number: int
    groups: Ints
    rows: Ints


class RowOrder:
    """The rows of every step.

    group_rows: (N,) rows of each row group, in the order of the files
    ranks:      virtual ranks: pairs of a whole batch
    buffer:     rows in the shuffle buffers of all ranks together
    """

    def __init__(
        self, group_rows: Sequence[int] | Ints, ranks: int, *, buffer: int, seed: int
    ) -> None:
        # Where groups start, in row numbers.
        self.starts = np.concatenate([[0], np.cumsum(group_rows, dtype=np.int64)])
        self.ranks, self.seed = ranks, seed
        self.buffer = max(1, buffer // ranks)
        self._dealt = functools.lru_cache(maxsize=2)(self._deal)  # ranks are in the same pass

    def _deal(self, number: int) -> Ints:
        """The row groups in the order of a pass; the same for all ranks."""
        groups = len(self.starts) - 1
        return np.random.default_rng([self.seed % 2**64, number]).permutation(groups)

    def groups(self, rank: int, number: int) -> Ints:
        """The row groups of a virtual rank in a pass."""
        # Dealing goes on from where the pass before ended: else some ranks would get more.
        first = (rank - number * (len(self.starts) - 1)) % self.ranks
        return self._dealt(number)[first :: self.ranks]

    def passes(self, rank: int, step: int) -> Iterator[tuple[Pass, int]]:
        """The passes of a virtual rank from a step on, each with how many rows of it are over."""
        for number in itertools.count():
            groups = self.groups(rank, number)
            lengths = self.starts[groups + 1] - self.starts[groups]
            if step >= lengths.sum():
                step -= int(lengths.sum())
                continue
            offsets = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
            rows = np.repeat(self.starts[groups], lengths) + offsets
            rng = np.random.default_rng([self.seed % 2**64, number, rank, 1])
            yield Pass(number, groups, rows[shuffled(len(rows), self.buffer, rng)]), step
            step = 0

    def row(self, rank: int, step: int) -> int:
        """The row that a virtual rank gives to the batch of a step."""
        found, over = next(self.passes(rank, step))
        return int(found.rows[over])


def shuffled(length: int, buffer: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The order in which a shuffle buffer gives out `length` items that stream through it.

    buffer:  slots; a random one is emptied for every item that comes in
    returns: (length,) a permutation; no item comes more than `buffer` places early
    """
    slots = list(range(min(buffer, length)))
    given = np.empty(length, np.int64)
    draws = rng.random(length)
    for position in range(length):
        slot = int(draws[position] * len(slots))
        given[position] = slots[slot]
        incoming = position + buffer
        if incoming < length:
            slots[slot] = incoming
        else:
            slots[slot] = slots[-1]
            slots.pop()
    return given
