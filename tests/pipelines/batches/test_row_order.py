"""The rows of a step are arithmetic: each once a pass, whoever reads them, from any step on."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.batches.row_order import RowOrder, shuffled

group_rows = st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(any)


@settings(deadline=None)
@given(length=st.integers(0, 60), buffer=st.integers(1, 70), seed=st.integers(0, 9))
def test_a_shuffle_buffer_loses_nothing_and_bounds_what_is_held(length, buffer, seed):
    given = shuffled(length, buffer, np.random.default_rng(seed))
    assert sorted(given.tolist()) == list(range(length))
    assert all(item - place < buffer for place, item in enumerate(given.tolist()))


@settings(deadline=None)
@given(rows=group_rows, ranks=st.integers(1, 12), seed=st.integers(0, 9))
def test_a_pass_deals_every_row_to_one_rank(rows, ranks, seed):
    order = RowOrder(rows, ranks, buffer=8, seed=seed)
    for number in range(3):
        groups = [g for rank in range(ranks) for g in order.groups(rank, number).tolist()]
        assert sorted(groups) == list(range(len(rows)))
    seen = Counter()
    for rank in range(ranks):
        for found, over in order.passes(rank, 0):
            assert over == 0
            if found.number > 1:
                break
            seen.update((found.number, row) for row in found.rows.tolist())
    assert seen == Counter((number, row) for number in (0, 1) for row in range(sum(rows)))


@settings(deadline=None)
@given(rows=group_rows, ranks=st.integers(1, 5), step=st.integers(0, 60))
def test_from_any_step_the_rows_are_those_of_an_undisturbed_run(rows, ranks, step):
    def taken(start: int, count: int) -> list[int]:
        out: list[int] = []
        for found, over in order.passes(ranks - 1, start):
            out += found.rows[over:].tolist()
            if len(out) >= count:
                return out[:count]
        raise AssertionError

    order = RowOrder(rows, ranks, buffer=6, seed=1)
    assert taken(step, 20) == taken(0, step + 20)[step:]
    assert order.row(ranks - 1, step) == taken(0, step + 1)[step]


def test_ranks_get_equally_many_groups_in_the_long_run():
    order = RowOrder([4] * 5, 3, buffer=6, seed=0)
    counts = [sum(len(order.groups(rank, number)) for number in range(9)) for rank in range(3)]
    assert counts == [15, 15, 15]


def test_a_batch_is_mixed_from_groups_all_over_the_data():
    """Of 64 shards of 512 rows in groups of 16, the first 32 batches of 32 see most shards."""
    order = RowOrder([16] * (64 * 32), 32, buffer=1024, seed=0)
    shards = Counter(order.row(rank, step) // 512 for rank in range(32) for step in range(32))
    assert len(shards) >= 0.6 * 64
    assert max(shards.values()) <= 0.1 * 1024


@pytest.mark.parametrize("seed", [0, 1])
def test_passes_and_seeds_differ_in_order(seed):
    order = RowOrder([3] * 6, 2, buffer=6, seed=seed)
    (first, _), (second, _) = (next(order.passes(0, step)) for step in (0, 9))
    assert (first.number, second.number) == (0, 1)
    assert first.rows.tolist() != second.rows.tolist()
    other = next(RowOrder([3] * 6, 2, buffer=6, seed=seed + 5).passes(0, 0))[0]
    assert first.rows.tolist() != other.rows.tolist()
