"""Association: the cues of MaskTrack R-CNN, and who gets whom, written out pair by pair."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.config import TrackerConfig
from idol.structures import FrameDetections
from idol.tracker import association
from idol.tracker.memory_bank import FrameArrays, MemoryBank
from idol.tracker.online import Tracker

CUES = TrackerConfig.multi_cue()


def bank(vectors: Any, boxes: Any, labels: Any, config: TrackerConfig = CUES) -> MemoryBank:
    made = MemoryBank(np.shape(vectors)[1], 3, config)
    count = len(vectors)
    made.add(np.arange(count), arrays(np.full(count, 0.9), vectors, boxes, labels), 0)
    return made


def arrays(scores: Any, vectors: Any, boxes: Any, labels: Any) -> FrameArrays:
    """Detections whose classes are certain, as the tracker hands them on."""
    return FrameArrays(
        scores=np.asarray(scores, np.float32),
        embeddings=np.asarray(vectors, np.float32),
        boxes=np.asarray(boxes, np.float32),
        class_scores=np.eye(3, dtype=np.float32)[np.asarray(labels)],
    )


@pytest.mark.parametrize("name", ["released", "paper", "multi_cue", "robust"])
def test_without_torch_pairs_are_as_similar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    config = getattr(TrackerConfig, name)()

    def some(count: int) -> tuple[Any, ...]:
        low = rng.random((count, 2)) * 50
        boxes = np.concatenate([low, low + 1 + rng.random((count, 2)) * 40], axis=1)
        vectors = rng.standard_normal((count, 8))
        return vectors, boxes, rng.integers(0, 3, count)

    memory = bank(*some(5), config)
    now = arrays(np.sort(rng.random(7))[::-1], *some(7))
    expected = association.similarity(now, memory, 1, config)
    monkeypatch.setattr(association, "HAS_TORCH", False)
    found = association.similarity(now, memory, 1, config)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def iou(a: Any, b: Any) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    union = sum(areas) - width * height
    return float(width * height / union) if union > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 5),
    m=st.integers(1, 5),
    weights=st.tuples(st.floats(0, 3), st.floats(0, 5), st.floats(0, 12)),
)
def test_multi_cue_is_its_equation_written_out(
    seed: int, n: int, m: int, weights: tuple[float, float, float]
) -> None:
    alpha, beta, gamma = weights
    config = dataclasses.replace(CUES, cue_score=alpha, cue_overlap=beta, cue_class=gamma)
    rng = np.random.default_rng(seed)
    vectors, known = (rng.normal(size=(k, 4)).astype(np.float32) for k in (n, m))
    corners, places = (
        np.concatenate([xy, xy + rng.uniform(1, 9, (len(xy), 2))], axis=1).astype(np.float32)
        for xy in (rng.uniform(0, 9, (n, 2)), rng.uniform(0, 9, (m, 2)))
    )
    scores = rng.uniform(0.05, 1, n).astype(np.float32)
    labels, classes = rng.integers(0, 2, n), rng.integers(0, 2, m)
    now = arrays(scores, vectors, corners, labels)
    found, bar = association.similarity(now, bank(known, places, classes, config), 1, config)
    for i in range(n):
        logits = [0.0, *(float(np.dot(vectors[i].astype(float), k)) for k in known)]
        total = math.log(sum(math.exp(value) for value in logits))
        certain = alpha * math.log(scores[i])
        assert bar[i, 0] == pytest.approx(logits[0] - total + certain + gamma, abs=1e-5)
        for j in range(m):
            value = logits[j + 1] - total + certain + beta * iou(corners[i], places[j])
            value += gamma * (labels[i] == classes[j])
            assert found[i, j] == pytest.approx(value, abs=1e-5)


def frame(
    index: int, scores: Any, vectors: Any, boxes: Any, labels: Any, overlaps: Any = None
) -> FrameDetections:
    best = torch.tensor(scores, dtype=torch.float32)
    class_scores = torch.zeros(len(best), 3)
    class_scores[torch.arange(len(best)), torch.tensor(labels)] = best
    return FrameDetections(
        frame_index=index,
        scores=best,
        class_scores=class_scores,
        embeddings=torch.tensor(vectors, dtype=torch.float32),
        overlaps=torch.eye(len(best)) if overlaps is None else torch.tensor(overlaps),
        boxes=torch.tensor(boxes, dtype=torch.float32),
    )


HERE, THERE = [0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 10.0]


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        # Alike, in place, of the class: continues. In turn each cue is taken away.
        (([0.9], [[1.0, 0.0]], [HERE], [0]), [0]),
        (([0.9], [[0.1, 1.0]], [HERE], [0]), [0]),  # 0.1 + 2 > 0: the place makes up for it
        (([0.9], [[-0.5, 1.0]], [THERE], [0]), [1]),  # -0.5 + 0 < 0: new
        (([0.9], [[1.0, 0.0]], [HERE], [1]), [1]),  # 1 + 2 < 10: another class
    ],
)
def test_multi_cue_weighs_appearance_place_and_class_against_being_new(
    then: Any, expected: list[int]
) -> None:
    tracker = Tracker(CUES)
    assert tracker.update(frame(0, [0.9], [[1.0, 0.0]], [HERE], [0])).tolist() == [0]
    assert tracker.update(frame(1, *then)).tolist() == expected


def test_of_two_equal_cues_the_more_certain_detection_has_the_instance() -> None:
    config = dataclasses.replace(CUES, cue_overlap=0.0)
    tracker = Tracker(config)
    tracker.update(frame(0, [0.9], [[1.0, 0.0]], [HERE], [0]))
    alike = [[1.0, 0.0], [1.0, 0.0]]
    ids = tracker.update(frame(1, [0.5, 0.8], alike, [HERE, THERE], [0, 0])).tolist()
    assert ids == [1, 0]
    # A detection that nobody doubts (score 0 has no logarithm) is still refused, not forbidden.
    assert tracker.update(frame(2, [0.0], [[1.0, 0.0]], [HERE], [0])).tolist() == [0]


def test_a_rival_for_the_same_instance_lowers_what_the_bi_softmax_adds() -> None:
    config = TrackerConfig(similarity="cosine", softmax_weight=0.5)
    known = bank([[4.0, 0.0]], [HERE], [0], config)
    one = arrays([0.9], [[4.0, 0.0]], [HERE], [0])
    alone, _ = association.similarity(one, known, 1, config)
    assert alone.tolist() == [[pytest.approx(1 + 0.5)]]
    two = arrays([0.9, 0.8], [[4.0, 0.0]] * 2, [HERE, THERE], [0, 0])
    shared, _ = association.similarity(two, known, 1, config)
    # Over memory each has it for certain, over detections half.
    assert shared.tolist() == [[pytest.approx(1 + 0.5 * 0.75)]] * 2


def plain_greedy(found: Any, threshold: float, existence: Any) -> list[int]:
    taken: set[int] = set()
    matches = []
    for row in found:
        passing = [j for j in range(len(row)) if row[j] > threshold and j not in taken]
        best = max(passing, key=lambda j: (row[j] * existence[j], -j), default=-1)
        matches.append(best)
        taken |= {best} - {-1}
    return matches


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 7), m=st.integers(1, 7))
def test_greedy_serves_one_after_the_other_however_many_want_the_same(
    seed: int, n: int, m: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few values, so that there are ties and quarrels.
    found = rng.integers(0, 6, (n, m)).astype(np.float32) / 5
    existence = rng.integers(1, 4, m).astype(np.float32)
    bar = np.full((1, 1), 0.5, np.float32)
    matches = association.assign_identities(found, bar, existence, TrackerConfig())
    assert matches.tolist() == plain_greedy(found, 0.5, existence)


@pytest.mark.parametrize("assignment", ["greedy", "argmax", "hungarian"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 7), m=st.integers(1, 7))
def test_every_assignment_is_one_to_one_and_above_the_bar(
    assignment: Any, seed: int, n: int, m: int
) -> None:
    rng = np.random.default_rng(seed)
    found = np.where(rng.random((n, m)) < 0.2, -np.inf, rng.random((n, m)))
    bar = rng.random((n, 1))
    config = TrackerConfig(assignment=assignment, similarity="cosine")
    matches = association.assign_identities(found, bar, np.ones(m, np.float32), config)
    used = [j for j in matches.tolist() if j >= 0]
    assert len(used) == len(set(used))
    assert all(found[i, j] > bar[i, 0] for i, j in enumerate(matches) if j >= 0)
    # Nobody is left without who could have had somebody nobody has.
    free = [j for j in range(m) if j not in used]
    for i in np.flatnonzero(matches < 0):
        if assignment != "argmax":  # Eq. 7 asks for the best only
            assert not (found[i, free] > bar[i, 0]).any()


@pytest.mark.parametrize("name", ["cue_score", "cue_overlap", "cue_class"])
def test_a_cue_cannot_count_against_an_instance(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be >= 0, got -1"):
        TrackerConfig(**{name: -1})
