"""From network outputs to detections, and on to tracks: released decisions and the floor's law."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import idol
from idol.config import DetectConfig
from idol.detection.postprocess import detections, select_queries
from idol.masks import iou, resize, rle
from idol.network.model import IDOL
from idol.structures import FrameDetections, Track
from idol.tracker.online import Tracker, TrackerConfig, admitted, track_video
from tests.idol import oracle_recipe as recipe
from tests.idol.some_rows import subset

INPUT_SIZE, SIZE = (45, 61), (97, 130)
CONFIGS = {
    "ytvis": TrackerConfig.released("ytvis"),
    "ovis": TrackerConfig.released("ovis"),
    "argmax": TrackerConfig(multi_class=False),
}


@pytest.fixture(scope="module")
def oracle(shared: Path) -> Any:
    with np.load(shared / "reference/oracle/postproc.npz") as stored:
        return {name: stored[name] for name in stored.files}


class Masks:
    """Stands for the network: gives stored mask logits and remembers who asked for which."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.asked: list[tuple[int, list[int]]] = []

    def masks(self, outputs: Any, image: int, queries: Tensor, layer: int = -1) -> Tensor:
        assert layer == -1
        self.asked.append((image, queries.tolist()))
        return self.logits[image, queries]


def selected_queries(logits: Tensor, boxes: Tensor, config: DetectConfig) -> Tensor:
    """(Q, K) logits, (Q, 4) boxes → (N,) the queries that become detections."""
    scores, labels = logits.sigmoid().max(dim=1)
    return torch.from_numpy(select_queries(scores.numpy(), labels.numpy(), boxes.numpy(), config))


def frames_of(
    oracle: Any, name: str, config: DetectConfig
) -> tuple[list[FrameDetections], list[Tensor]]:
    inputs = {
        k: torch.from_numpy(oracle[f"{name}/in/{k}"]) for k in ("logits", "boxes", "embed", "masks")
    }
    frames, selected = [], []
    outputs: Any = SimpleNamespace(
        logits=inputs["logits"][None], boxes=inputs["boxes"][None], embeddings=inputs["embed"]
    )
    model: Any = Masks(inputs["masks"])
    for t, (logits, boxes) in enumerate(zip(inputs["logits"], inputs["boxes"], strict=True)):
        selected.append(selected_queries(logits, boxes, config))
        frames.append(detections(outputs, model, t, t, INPUT_SIZE, SIZE, config))
    return frames, selected


def entries(tracks: list[Track], config: TrackerConfig) -> list[tuple[int, int, float]]:
    """(index of the track, label, score) of everything that is submitted."""
    found = []
    for index, one in enumerate(tracks):
        if config.multi_class:
            labels = (one.class_scores > config.class_score_threshold).nonzero()[:, 0].tolist()
        else:
            labels = [int(one.class_scores.argmax())]
        found += [(index, label, float(one.class_scores[label])) for label in labels]
    return found


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("floor", [0.1, 0.02])
def test_selection_tracks_scores_and_masks_equal_the_released_ones(
    oracle: Any, kind: str, floor: float
) -> None:
    config = CONFIGS[kind]
    assert len(oracle["names"]) == 12
    for name in oracle["names"]:
        case = f"{name}/{kind}"
        # Stored at a lower floor, the detections hold more rows and lead to the same tracks.
        frames, selected = frames_of(oracle, name, DetectConfig(score_floor=floor))
        tracker = Tracker(config)
        for t, (frame, queries) in enumerate(zip(frames, selected, strict=True)):
            rows = torch.from_numpy(admitted(frame, config))
            assert queries[rows].tolist() == oracle[f"{case}/{t}/sel"].tolist(), (case, t)
            ids = tracker.update(subset(frame, rows))
            given_ids = dict(zip(queries[rows].tolist(), ids.tolist(), strict=True))
            kept, expected = oracle[f"{case}/{t}/kept"], oracle[f"{case}/{t}/ids"]
            wanted = dict.fromkeys(given_ids, -1)
            wanted.update(zip(kept.tolist(), np.maximum(expected, -1).tolist(), strict=True))
            assert given_ids == wanted, (case, t)

        tracks = track_video(frames, config)
        submitted = entries(tracks, config)
        assert [e[0] for e in submitted] == oracle[f"{case}/inst"].tolist(), case
        assert [e[1] for e in submitted] == oracle[f"{case}/labels"].tolist(), case
        np.testing.assert_allclose(
            [e[2] for e in submitted], oracle[f"{case}/scores"], rtol=0, atol=1e-6
        )
        present = [[t in one.detections for t in range(len(frames))] for one in tracks]
        stored = oracle[f"{case}/present"]
        # Only tracks with an entry are stored.
        used = sorted({e[0] for e in submitted})
        assert np.array_equal(np.array(present)[used], stored), case
        pixels = np.zeros((*stored.shape, *SIZE), np.uint8)
        for i, index in enumerate(used):
            for t, row in tracks[index].detections.items():
                pixels[i, t] = rle.decode_masks([frames[t].masks[row]], SIZE)[0]
        packed = oracle[f"{case}/masks"]
        assert np.array_equal(np.packbits(pixels), packed), case


def test_a_whole_video_through_the_network_equals_the_released_one(shared: Path) -> None:
    stored = np.load(shared / "reference/oracle/video_e2e.npz")
    model = IDOL(idol.presets.by_name("ytvis19_r50")).eval()
    model.load_state_dict(recipe.recipe_weights(shared / "reference/state_dict_r50.txt"))
    pictures = [recipe.frame(180, 240, t, 4, 3)[0] for t in range(13)]
    input_size, size = (180, 240), (270, 360)
    frames: list[FrameDetections] = []
    for start in (0, 10):  # as released: 10 frames at a time
        part = pictures[start : start + 10]
        with torch.inference_mode():
            outputs = model(*recipe.batch(part, (192, 256)))
        for i in range(len(part)):
            frame = detections(outputs, model, i, start + i, input_size, size, DetectConfig())
            queries = selected_queries(outputs.logits[-1, i], outputs.boxes[-1, i], DetectConfig())
            assert queries.tolist() == stored[f"sel_{start + i}"].tolist()
            frames.append(frame)
    config = TrackerConfig.released("ytvis")
    tracks = track_video(frames, config)
    submitted = entries(tracks, config)
    assert [e[0] for e in submitted] == stored["pred_inst"].tolist()
    assert [e[1] for e in submitted] == stored["pred_labels"].tolist()
    np.testing.assert_allclose([e[2] for e in submitted], stored["pred_scores"], rtol=0, atol=1e-5)
    for index, one in enumerate(tracks):
        assert sorted(one.detections) == np.flatnonzero(stored["inst_present"][index]).tolist()
        for t, row in one.detections.items():
            expected = np.unpackbits(stored["inst_masks_packed"][index, t])[: size[0] * size[1]]
            mask = rle.decode_masks([frames[t].masks[row]], size)[0]
            # Other hardware may round a pixel on an outline to the other side.
            assert (mask.ravel() != expected).sum() <= 1e-4 * expected.sum()


# --- selection -----------------------------------------------------------------------------------


def random_queries(seed: int, count: int, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits and boxes of queries that crowd around a few places, so that NMS has work."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0.2, 0.8, (3, 4))
    boxes = places[rng.integers(0, 3, count)] + rng.normal(0, 0.02, (count, 4))
    logits = rng.normal(-1, 2, (count, num_classes))
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(boxes, dtype=torch.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.integers(1, 40),
    thresholds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    box_nms=st.floats(0.3, 0.95),
    cap=st.integers(1, 40),
)
def test_box_suppression_commutes_with_a_score_filter(
    seed: int, count: int, thresholds: tuple[float, float], box_nms: float, cap: int
) -> None:
    logits, boxes = random_queries(seed, count)
    floor, threshold = sorted(thresholds)
    stored = selected_queries(
        logits, boxes, DetectConfig(score_floor=floor, box_nms=box_nms, max_detections=cap)
    )
    direct = selected_queries(
        logits, boxes, DetectConfig(score_floor=threshold, box_nms=box_nms, max_detections=cap)
    )
    scores = logits.sigmoid().amax(1)
    later = stored[scores[stored] > threshold]
    # Where nothing passes the threshold both fall back to the best query.
    assert (later if len(later) else stored[:1]).tolist() == direct.tolist()


def test_the_best_query_is_stored_where_none_passes_the_floor() -> None:
    logits, boxes = torch.tensor([[-9.0, -8.0], [-5.0, -7.0]]), torch.full((2, 4), 0.5)
    assert selected_queries(logits, boxes, DetectConfig(score_floor=0.5)).tolist() == [1]


def test_boxes_of_different_classes_do_not_suppress_each_other() -> None:
    boxes = torch.full((3, 4), 0.5)
    logits = torch.tensor([[2.0, -9.0], [-9.0, 3.0], [1.0, -9.0]])
    assert selected_queries(logits, boxes, DetectConfig()).tolist() == [1, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_network_outputs_that_are_not_finite_are_refused_with_the_query(value: float) -> None:
    outputs, model = fabricated_outputs(0)
    outputs.logits[-1, 1, 3, 1] = value
    with pytest.raises(ValueError, match="1 of 12 object queries are not; the first is query 3"):
        detections(outputs, model, 1, 7, (64, 96), (64, 96), DetectConfig())
    outputs, model = fabricated_outputs(0)
    best = int(outputs.logits[-1, 1].amax(dim=1).argmax())
    outputs.embeddings[1, best, 1] = value
    with pytest.raises(ValueError, match=r"embeddings must be finite, but 1 of \d+ .* frame 7"):
        detections(outputs, model, 1, 7, (64, 96), (64, 96), DetectConfig())


# --- one image of a batch ------------------------------------------------------------------------


def fabricated_outputs(seed: int) -> tuple[Any, Any]:
    """What detections reads of Outputs: two layers, two images of 64 x 96, twelve queries."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    outputs = SimpleNamespace(
        logits=random(2, 2, 12, 3) * 6 - 4,
        boxes=random(2, 2, 12, 4) * 0.5 + 0.25,
        embeddings=random(2, 12, 5),
    )
    return outputs, Masks(random(2, 12, 16, 24) * 8 - 5)


def test_an_image_of_a_batch_becomes_detections_in_original_pixels() -> None:
    outputs, model = fabricated_outputs(0)
    config = DetectConfig(score_floor=0.2, max_detections=5)
    frame = detections(outputs, model, 1, 17, (60, 90), (120, 180), config)
    queries = selected_queries(outputs.logits[-1, 1], outputs.boxes[-1, 1], config)
    assert model.asked == [(1, queries.tolist())]  # masks are made for the survivors only
    assert frame.frame_index == 17
    assert 1 < len(frame) <= 5
    assert (frame.scores[:-1] >= frame.scores[1:]).all()
    torch.testing.assert_close(frame.class_scores, outputs.logits[-1, 1, queries].sigmoid())
    assert torch.equal(frame.embeddings, outputs.embeddings[1, queries])
    cx, cy, w, h = outputs.boxes[-1, 1, queries[0]].tolist()
    expected = [(cx - w / 2) * 180, (cy - h / 2) * 120, (cx + w / 2) * 180, (cy + h / 2) * 120]
    limits = [180, 120, 180, 120]
    clipped = [min(max(v, 0), limit) for v, limit in zip(expected, limits, strict=True)]
    assert frame.boxes[0].tolist() == pytest.approx(clipped, abs=1e-4)
    logits = model.logits[1, queries]
    assert torch.equal(frame.overlaps, iou.mask_iou(logits > 0))
    whole = resize.resize(logits, (60, 90), (120, 180))
    assert np.array_equal(rle.decode_masks(frame.masks, (120, 180)), whole.numpy())


def test_a_batch_gives_every_image_what_it_gets_alone() -> None:
    outputs, model = fabricated_outputs(1)
    config = DetectConfig()
    second = detections(outputs, model, 1, 0, (64, 96), (64, 96), config)
    alone: Any = SimpleNamespace(
        logits=outputs.logits[:, 1:],
        boxes=outputs.boxes[:, 1:],
        embeddings=outputs.embeddings[1:],
    )
    single: Any = Masks(model.logits[1:])
    again = detections(alone, single, 0, 0, (64, 96), (64, 96), config)
    assert second.masks == again.masks
    for name in ("scores", "class_scores", "embeddings", "overlaps", "boxes"):
        assert torch.equal(getattr(second, name), getattr(again, name)), name
