"""The memory bank: each way of summing up what was seen, written out one embedding at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.arrays import Floats32
from idol.config import TrackerConfig
from idol.tracker.memory_bank import FrameArrays, MemoryBank


def arrays(vectors: Floats32) -> FrameArrays:
    """Detections with these embeddings (n, C), of class 0 in one corner."""
    count = len(vectors)
    return FrameArrays(
        scores=np.ones(count, np.float32),
        embeddings=vectors,
        boxes=np.zeros((count, 4), np.float32),
        class_scores=np.zeros((count, 3), np.float32),
    )


def shown(vectors: Floats32, config: TrackerConfig) -> MemoryBank:
    """One instance that showed these embeddings (T, C), a frame each, beside one seen once."""
    bank = MemoryBank(vectors.shape[1], 3, config)
    bank.add(np.arange(2), arrays(np.stack([vectors[0], vectors[0]])), 0)
    for clock, vector in enumerate(vectors[1:], start=1):
        bank.see(np.array([1]), arrays(vector[None]), clock)
    return bank


def drawn(seed: int, length: int) -> Floats32:
    return np.random.default_rng(seed).normal(size=(length, 6)).astype(np.float32)


@given(seed=st.integers(0, 2**16), length=st.integers(1, 8))
def test_last_is_the_newest_embedding(seed: int, length: int) -> None:
    vectors = drawn(seed, length)
    bank = shown(vectors, TrackerConfig(weighting="last"))
    np.testing.assert_array_equal(bank.embeddings, [vectors[0], vectors[-1]])
    assert bank.history.size == 0


def guided(vectors: Floats32, remembered: int) -> list[float]:
    """CTVIS's similarity-guided fusion, one embedding and one pair at a time."""
    mean = vectors[0].astype(float)
    for t in range(1, len(vectors)):
        cosines = [
            float(np.dot(vectors[t], past) / np.linalg.norm(vectors[t]) / np.linalg.norm(past))
            for past in vectors[max(0, t - remembered) : t].astype(float)
        ]
        share = max(0.0, sum(cosines) / len(cosines))
        mean = (1 - share) * mean + share * vectors[t]
    return [float(v) for v in mean]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**16), length=st.integers(1, 8), remembered=st.integers(1, 5))
def test_similarity_guided_is_its_formula_written_out(
    seed: int, length: int, remembered: int
) -> None:
    vectors = drawn(seed, length)
    config = TrackerConfig(weighting="similarity_guided", memory_length=remembered)
    bank = shown(vectors, config)
    np.testing.assert_allclose(bank.embeddings[1], guided(vectors, remembered), atol=1e-5)
    np.testing.assert_array_equal(bank.embeddings[0], vectors[0])


def test_what_is_unlike_all_before_changes_a_guided_memory_not_at_all() -> None:
    vectors = np.array([[1, 0], [1, 0], [-1, 0], [0, 1], [0, 0]], np.float32)
    bank = shown(vectors, TrackerConfig(weighting="similarity_guided"))
    np.testing.assert_array_equal(bank.embeddings[1], [1, 0])


@pytest.mark.parametrize(
    "weighting", ["paper", "released", "momentum", "last", "similarity_guided"]
)
def test_what_is_kept_of_an_instance_has_a_fixed_size(weighting: str) -> None:
    config = TrackerConfig(weighting=weighting, memory_length=3)  # type: ignore[arg-type]
    sizes = set()
    for length in (5, 50):
        bank = shown(drawn(0, length), config)
        sizes.add(sum(getattr(bank, name).nbytes for name in ("embeddings", "history", "boxes")))
        assert len(bank) == 2
    assert len(sizes) == 1


def test_forgetting_keeps_the_rows_of_all_arrays_together() -> None:
    bank = shown(drawn(0, 4), TrackerConfig(memory_lifetime=2))
    bank.forget(0)
    assert bank.ids.tolist() == [1]
    assert bank.existence.tolist() == [4]
    assert bank.last_seen.tolist() == [3]
    assert bank.embeddings.shape == (1, 6)
    assert bank.history.shape == (1, 3, 6)
