"""Negatives of the auxiliary loss are drawn as the released code draws them."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.learning.embedding_losses import sample_negatives


def rows(seed, count, num_queries):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, (count, num_queries))
    positives, negatives = kind == 0, kind >= 2
    positives[:, 0], negatives[:, 0] = True, False
    return positives, negatives


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(0, 4),
    num_queries=st.integers(1, 60),
    per_positive=st.integers(0, 12),
)
def test_so_many_negatives_per_positive_are_drawn_or_all_there_are(
    seed, count, num_queries, per_positive
):
    positives, negatives = rows(seed, count, num_queries)
    drawn = sample_negatives(positives, negatives, per_positive, random.Random(seed))
    assert not (drawn & ~negatives).any()
    wanted = np.minimum(per_positive * positives.sum(1), negatives.sum(1))
    np.testing.assert_array_equal(drawn.sum(1), wanted)


def test_draws_are_those_of_the_random_module_in_order_of_the_truths():
    positives, negatives = rows(3, 3, 40)
    drawn = sample_negatives(positives, negatives, 1, random.Random(1234))
    rng = random.Random(1234)
    for mine, others, got in zip(positives, negatives, drawn, strict=True):
        candidates = np.flatnonzero(others)
        chosen = rng.sample(range(len(candidates)), min(mine.sum(), len(candidates)))
        np.testing.assert_array_equal(np.flatnonzero(got), np.sort(candidates[chosen]))


def test_given_samples_index_into_the_negatives_and_need_one_entry_per_truth():
    positives = np.array([[True, False, False, False]])
    negatives = np.array([[False, True, False, True]])
    drawn = sample_negatives(positives, negatives, 10, random.Random(0), samples=[[1]])
    assert drawn.tolist() == [[False, False, False, True]]
    with pytest.raises(ValueError, match="1, got 2"):
        sample_negatives(positives, negatives, 10, random.Random(0), samples=[[1], [0]])
