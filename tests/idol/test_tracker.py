"""The tracker: released decisions, the paper's equations, and laws that any tracker must keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from idol import masks
from idol.structures import FrameDetections, Track
from idol.tracker import Tracker, TrackerConfig, select, subset, track_video

EVERY_CONFIG = {
    "ytvis": TrackerConfig.released("ytvis"),
    "ovis": TrackerConfig.released("ovis"),
    "paper": TrackerConfig.paper(),
    "robust": TrackerConfig.robust(),
    "momentum": TrackerConfig(weighting="momentum", frame_weight=False),
    "gated": TrackerConfig(min_cosine=0.3, same_class=True, temporal_weight=False),
    "argmax": TrackerConfig(assignment="argmax"),
}
TRACE_CONFIGS = {
    "ytvis": TrackerConfig.released("ytvis"),
    "ovis": TrackerConfig.released("ovis"),
    "ema_only": TrackerConfig(weighting="momentum", frame_weight=False),
    "fw_only": TrackerConfig(weighting="momentum"),
    "mem10": TrackerConfig(memory_length=10),
}


def make_frame(
    index: int,
    scores: Any,
    embeddings: Any,
    overlaps: Any = None,
    labels: Any = None,
    num_classes: int = 3,
) -> FrameDetections:
    """A frame of detections whose best class is labels (0 by default), without masks."""
    best = torch.as_tensor(scores, dtype=torch.float32)
    count = len(best)
    label = torch.zeros(count, dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    class_scores = torch.zeros(count, num_classes)
    class_scores[torch.arange(count), label] = best
    vectors = torch.as_tensor(embeddings, dtype=torch.float32)
    return FrameDetections(
        frame_index=index,
        scores=best,
        class_scores=class_scores,
        embeddings=vectors if count else vectors.reshape(0, vectors.shape[-1]),
        overlaps=torch.eye(count) if overlaps is None else torch.as_tensor(overlaps),
        boxes=torch.zeros(count, 4),
    )


def random_video(
    seed: int, length: int, most: int = 8, size: int = 4, distinct: bool = True
) -> list[FrameDetections]:
    """Detections of a few noisy identities with misses, false positives and overlaps."""
    rng = np.random.default_rng(seed)
    identities = rng.normal(size=(most, size)) * 2
    frames = []
    for index in range(length):
        shown = rng.permutation(most)[: rng.integers(0, most + 1)]
        vectors = identities[shown] + 0.3 * rng.normal(size=(len(shown), size))
        levels = rng.permutation(1000)[: len(shown)] if distinct else rng.integers(0, 9, len(shown))
        scores = np.sort(levels / (1000 if distinct else 9))[::-1].copy()
        overlap = rng.random((len(shown), len(shown))) ** 3
        overlap = np.maximum(overlap, overlap.T).astype(np.float32)
        np.fill_diagonal(overlap, 1)
        labels = rng.integers(0, 3, len(shown))
        frames.append(make_frame(index, scores, vectors, overlap, labels))
    return frames


def track(frames: list[FrameDetections], config: TrackerConfig) -> list[list[int]]:
    tracker = Tracker(config)
    return [tracker.update(frame).tolist() for frame in frames]


# --- decisions of the released code ------------------------------------------------------------


@pytest.fixture(scope="module")
def traces(shared: Path) -> Iterator[Any]:
    with np.load(shared / "reference/oracle/tracker_traces.npz") as stored:
        yield {name: stored[name] for name in stored.files}


def trace_frame(stored: Any, sequence: str, t: int) -> FrameDetections:
    prefix = f"{sequence}/in/{t}"
    height, width = stored["mask_hw"]
    packed = stored[f"{prefix}/mask"]
    bits = np.unpackbits(packed, axis=1)[:, : height * width].reshape(len(packed), height, width)
    logits = torch.from_numpy(bits.astype(np.float32)) * 8 - 4
    return make_frame(
        t,
        stored[f"{prefix}/bbox"][:, 4],
        stored[f"{prefix}/emb"],
        masks.overlaps(logits > 0),
        stored[f"{prefix}/label"],
        num_classes=100,
    )


@pytest.mark.parametrize("name", TRACE_CONFIGS)
def test_every_stored_trace_of_the_released_tracker_is_reproduced(traces: Any, name: str) -> None:
    sequences = [s for s in traces["names"] if f"{s}/out/{name}/0/ids" in traces]
    assert len(sequences) == (56 if name in ("ytvis", "ovis") else 18)
    different = []
    for sequence in sequences:
        tracker = Tracker(TRACE_CONFIGS[name])
        for t in range(int(traces[f"{sequence}/T"])):
            frame = trace_frame(traces, sequence, t)
            out = f"{sequence}/out/{name}/{t}"
            expected = np.full(len(frame), -1)
            # Backdrops (-1) and unmatched (-2) both have no identity.
            expected[traces[f"{out}/kept"]] = np.maximum(traces[f"{out}/ids"], -1)
            ids = tracker.update(frame).numpy()
            if not np.array_equal(ids, expected) or set(tracker.alive) != set(traces[f"{out}/mem"]):
                different.append((sequence, t, ids, expected))
    assert not different
