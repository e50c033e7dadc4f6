"""Every number of the tracker does something: another value, another outcome of a sweep's trial."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from idol.config import Config, TrackerConfig, to_dict, without_effect
from idol.structures import FrameDetections
from idol.tracker.online import track_video
from idol.ytvis import results
from pipelines.storage import manifest
from pipelines.sweep import space

ROBUST = to_dict(TrackerConfig.robust())
PAPER = to_dict(TrackerConfig.paper())
MULTI_CUE = to_dict(TrackerConfig.multi_cue())

TRIED: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "weighting": ({}, ["paper", "released", "momentum", "last", "similarity_guided"]),
    "temporal_weight": ({"memory_length": 5}, [True, False]),
    "momentum": (ROBUST, [0.2, 0.8]),
    "frame_weight": ({"match_threshold": 0.1}, [True, False]),
    "tau": (PAPER | {"memory_length": 8}, [0.0, 20.0]),
    "memory_length": ({}, [1, 8]),
    "similarity": ({"match_threshold": 0.3}, ["paper", "released", "cosine", "multi_cue"]),
    "cue_score": (MULTI_CUE, [0.0, 20.0]),
    "cue_overlap": (MULTI_CUE, [0.0, 20.0]),
    "cue_class": (MULTI_CUE, [0.0, 20.0]),
    "position_weight": (ROBUST, [0.0, 2.0]),
    "size_weight": (ROBUST, [0.0, 3.0]),
    "newest_too": (ROBUST, [True, False]),
    "softmax_weight": (ROBUST, [0.0, 1.0]),
    "class_weight": (ROBUST, [0.0, 1.0]),
    "new_overlap": (ROBUST, [0.05, 1.0]),
    "assignment": ({"match_threshold": 0.1}, ["greedy", "argmax", "hungarian"]),
    "match_threshold": ({}, [0.2, 0.9]),
    "min_cosine": (ROBUST, [-1.0, 0.9]),
    "same_class": (ROBUST, [True, False]),
    "score_threshold": ({}, [0.1, 0.4]),
    "keep_best": ({"score_threshold": 0.97}, [True, False]),
    "new_threshold": ({}, [0.2, 0.6]),
    "first_threshold": ({}, [0.2, 0.8]),
    "mask_nms": ({}, [0.3, 0.9]),
    "memory_lifetime": ({}, [2, 20]),
    "class_score_threshold": ({}, [0.05, 0.5]),
    "multi_class": ({}, [True, False]),
    "prune_short": ({}, [0, 5]),
    "prune_after": ({}, [2, 20]),
    "prune_at_end": ({}, [True, False]),
    "plugin": ({}, ["", "tests.idol.tracker.test_plugin:Rows"]),
}
"""Field -> what else to set so that it can matter, and values that must all differ in outcome."""


def videos() -> list[list[FrameDetections]]:
    """Noisy look-alikes that hide, waver between classes and are found twice: a hard detector."""
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        looks = rng.normal(size=(5, 8)) + 2 * rng.normal(size=8)  # much alike
        place, speed = rng.uniform(20, 200, (5, 2)), rng.normal(0, 6, (5, 2))
        frames = []
        for t in range(24):
            place += speed
            there = [i for i in range(5) if rng.random() < 0.75]
            rows = [(i, False) for i in there] + [(i, True) for i in there if rng.random() < 0.3]
            rows += [(-1, False)] * (rng.random() < 0.3)
            frames.append(_frame(t, rows, looks, place, rng))
        found.append(frames)
    return found


def _frame(
    t: int,
    rows: list[tuple[int, bool]],
    looks: np.ndarray[Any, Any],
    place: np.ndarray[Any, Any],
    rng: np.random.Generator,
) -> FrameDetections:
    count = len(rows)
    score = np.sort(rng.uniform(0.12, 0.96, count))[::-1].astype(np.float32)
    embeddings = np.zeros((count, 8))
    boxes = np.zeros((count, 4))
    classes = rng.uniform(0.0, 0.5, (count, 3)) * score[:, None]
    for n, (i, _) in enumerate(rows):
        look = looks[i] if i >= 0 else rng.normal(size=8)
        embeddings[n] = look + 0.9 * rng.normal(size=8)
        centre = (place[i] if i >= 0 else rng.uniform(0, 200, 2)) + rng.normal(0, 4, 2)
        half = rng.uniform(10, 20, 2)
        boxes[n] = [*(centre - half), *(centre + half)]
        classes[n, max(i, 0) % 2 if rng.random() < 0.8 else 2] = score[n]
    same = np.array([[a == b and a >= 0 for b, _ in rows] for a, _ in rows]).reshape(count, count)
    overlaps = np.where(same, 0.7, 0.1)
    np.fill_diagonal(overlaps, 1.0)
    return FrameDetections(
        frame_index=t,
        scores=torch.from_numpy(score.copy()),
        class_scores=torch.from_numpy(classes.astype(np.float32)),
        embeddings=torch.from_numpy(embeddings.astype(np.float32)),
        overlaps=torch.from_numpy(overlaps.astype(np.float32)),
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        masks=(),
    )


@pytest.fixture(scope="module")
def hard() -> list[list[FrameDetections]]:
    return videos()


def outcome(frames: list[list[FrameDetections]], config: TrackerConfig) -> list[Any]:
    """All that scoring would see: which detections are joined, under which class and score."""
    seen: list[Any] = []
    for video in frames:
        tracks = track_video(video, config)
        chosen = results.class_entries(tracks, config)
        seen.append(
            [(sorted(tracks[s.track].detections.items()), s.label, s.score) for s in chosen]
        )
    return seen


def test_every_field_of_the_tracker_is_tried() -> None:
    assert set(TRIED) == {field.name for field in dataclasses.fields(TrackerConfig)}


@pytest.mark.parametrize("field", TRIED)
def test_another_value_gives_another_outcome(field: str, hard: list[list[FrameDetections]]) -> None:
    around, values = TRIED[field]
    base = TrackerConfig(**around)
    outcomes = []
    for value in values:
        # As a sweep's worker makes it, from the text of a job.
        config = space.applied(Config(tracker=base), {f"tracker.{field}": value}).tracker
        assert getattr(config, field) == value
        asked = dataclasses.replace(base, **{field: value})
        assert manifest.hash_value(to_dict(config)) == manifest.hash_value(to_dict(asked))
        outcomes.append(outcome(hard, config))
    for n, first in enumerate(outcomes):
        for m, second in enumerate(outcomes[:n]):
            assert first != second, f"{field}={values[n]} does what {values[m]} does"


BASES = (
    TrackerConfig(),
    TrackerConfig(temporal_weight=False, prune_short=1),
    TrackerConfig.paper(),
    TrackerConfig(weighting="paper", temporal_weight=False, similarity="cosine"),
    TrackerConfig.multi_cue(),
    TrackerConfig.robust(),
    TrackerConfig(weighting="similarity_guided", position_weight=0.5),
)


@pytest.mark.parametrize("field", TRIED)
def test_a_field_said_to_be_without_effect_has_none(
    field: str, hard: list[list[FrameDetections]]
) -> None:
    around, values = TRIED[field]
    key = f"tracker.{field}"
    assert not without_effect(Config(tracker=TrackerConfig(**around)), key, {})
    for base in BASES:
        if not without_effect(Config(tracker=base), key, {}) or field == "newest_too":
            continue  # newest_too is refused where it has no effect
        outcomes = [outcome(hard, dataclasses.replace(base, **{field: v})) for v in values]
        assert all(found == outcomes[0] for found in outcomes), base


def test_tau_and_others_of_one_weighting_are_said_to_be_without_effect_beside_another() -> None:
    fields = {field: [b for b in BASES if without_effect(Config(tracker=b), f"tracker.{field}", {})]
              for field in TRIED}  # fmt: skip
    assert fields["tau"] == [b for b in BASES if b != TrackerConfig.paper()]
    assert fields["momentum"] == [b for b in BASES if b != TrackerConfig.robust()]
    assert fields["match_threshold"] == [TrackerConfig.multi_cue()]
    assert fields["cue_class"] == [b for b in BASES if b != TrackerConfig.multi_cue()]
    assert fields["weighting"] == fields["mask_nms"] == []
