"""The visits of a step are arithmetic: videos count alike, groups are of one orientation."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.batches.video_order import VideoOrder


def taken(order: VideoOrder, rank: int, count: int, start: int = 0) -> list[tuple[int, int]]:
    found = itertools.islice(order.visits(rank, start), count)
    return [(visit.number, visit.video) for visit in found]


@settings(deadline=None, max_examples=40)
@given(
    wide=st.lists(st.booleans(), min_size=1, max_size=25),
    batch=st.integers(1, 9),
    group=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_a_group_is_wide_or_upright_and_no_visit_is_given_out_twice(wide, batch, group, seed):
    order = VideoOrder(np.array(wide), batch, group, seed=seed)
    steps = 30
    by_rank = [taken(order, rank, steps) for rank in range(batch)]
    numbers = [number for visits in by_rank for number, _ in visits]
    assert len(set(numbers)) == len(numbers)
    for first in range(0, batch, group):
        for step in range(steps):
            kinds = {wide[by_rank[r][step][1]] for r in range(first, min(first + group, batch))}
            assert len(kinds) == 1


@settings(deadline=None, max_examples=40)
@given(
    wide=st.lists(st.booleans(), min_size=1, max_size=12),
    group=st.integers(1, 4),
    step=st.integers(0, 700),
)
def test_from_any_step_the_visits_are_those_of_an_undisturbed_run(wide, group, step):
    order = VideoOrder(np.array(wide), 6, group, seed=1)
    for rank in (0, 5):
        assert taken(order, rank, 20, step) == taken(order, rank, step + 20)[step:]


def test_without_groups_every_pass_visits_every_video_once():
    order = VideoOrder(np.array([True, False] * 10), 4, 1, seed=3)
    visits = sorted(v for rank in range(4) for v in taken(order, rank, 25))
    assert [number for number, _ in visits] == list(range(100))
    passes = [[video for _, video in visits[start : start + 20]] for start in range(0, 100, 20)]
    assert all(sorted(videos) == list(range(20)) for videos in passes)
    assert len({tuple(videos) for videos in passes}) == 5


def test_videos_count_alike_in_groups_too():
    """3 of 40 videos are upright: they wait for one another, and are visited as often."""
    wide = np.ones(40, bool)
    wide[[4, 9, 30]] = False
    order = VideoOrder(wide, 8, 4, seed=0)
    seen = Counter(video for rank in range(8) for _, video in taken(order, rank, 1000))
    # 8000 visits, 200 a video; two groups hold back at most 3 visits of either kind.
    assert set(seen) == set(range(40))
    assert all(abs(count - 200) <= 6 for count in seen.values())


def test_groups_are_those_that_the_released_loader_makes():
    """AspectRatioGroupedDataset of one GPU, written out (specification 5.1)."""
    wide = np.random.default_rng(5).random(30) < 0.7
    batch, group = 8, 4
    order = VideoOrder(wide, batch, group, seed=2)
    plain = VideoOrder(np.ones(30, bool), batch, 1, seed=2)
    for gpu in (0, 1):
        ranks = range(gpu * group, (gpu + 1) * group)
        by_step = zip(*(taken(plain, r, 200) for r in ranks), strict=True)
        stream = [visit for step in by_step for visit in step]
        buckets: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        expected = []
        for visit in stream:
            bucket = buckets[bool(wide[visit[1]])]
            bucket.append(visit)
            if len(bucket) == group:
                expected.append(tuple(bucket))
                bucket.clear()
        found = list(zip(*(taken(order, r, 150) for r in ranks), strict=True))
        assert found == expected[:150]


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds_differ_in_order(seed):
    first, other = (
        taken(VideoOrder(np.ones(9, bool), 2, 1, seed=s), 0, 9) for s in (seed, seed + 5)
    )
    assert first != other
