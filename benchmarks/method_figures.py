"""Figures of how the method works, on synthetic videos and the shipped tiny weights.

python -m benchmarks.method_figures          (writes docs/figures/*.jpg, one minute)

After the paper's Figures 2 (embeddings of a key and a reference frame), 8 (positive samples by IoU
and by optimal transport) and 9 (association with and without a memory over time).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import idol
from idol.config import AssignmentConfig, TrackerConfig
from idol.detection import Detector
from idol.images import SyntheticConfig, make_video, visualize
from idol.images.synthetic import SyntheticVideo
from idol.learning.assignment import Truths, contrastive_samples
from idol.masks import rle
from idol.masks.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from idol.network.model import IDOL
from idol.structures import FrameDetections, Outputs
from idol.tracker import Tracker

matplotlib.use("agg")
from matplotlib import pyplot

Image = NDArray[np.uint8]

SEEDS = range(500, 510)
"""Videos among which the clearest example is looked for; far from those of the training."""
_ZOOM = 2
_SHOWN = 0.3  # score of a detection that is drawn


def boxes_of(masks: NDArray[np.bool_]) -> Tensor:
    """(G, 4) xyxy around (G, H, W) masks."""
    found = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return torch.tensor(found, dtype=torch.float32)


def outputs_of(model: IDOL, frame: Image) -> Outputs:
    """All that the network says of one frame; its sides need no padding."""
    pixels = Detector(model).prepare(frame).pixels[None]
    with torch.inference_mode():
        return model(pixels, torch.zeros(1, *pixels.shape[-2:], dtype=torch.bool))


def truths_of(video: SyntheticVideo, t: int, rows: Sequence[int]) -> Truths:
    """These instances of a frame, as assignment takes them."""
    height, width = video.frames.shape[1:3]
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = xyxy_to_cxcywh(boxes_of(video.masks[t][list(rows)]) / scale)
    labels = torch.from_numpy(video.labels[list(rows)])
    return Truths(labels[None], boxes[None], torch.ones(1, len(rows), dtype=torch.bool))


def embeddings(model: IDOL) -> pyplot.Figure:
    """Figure 2: two frames, and how alike the embeddings of their instances are."""
    video = make_video(SyntheticConfig.crowded(), 501)
    t, u = 1, 4
    rows = [g for g in range(len(video.labels)) if video.masks[[t, u], g].any((1, 2)).all()]
    vectors = []
    for frame in (t, u):
        outputs = outputs_of(model, video.frames[frame])
        truths = truths_of(video, frame, rows)
        # The query that answers for each instance, by the box that fits it best.
        iou = _iou(cxcywh_to_xyxy(outputs.boxes[-1, 0]), cxcywh_to_xyxy(truths.boxes[0]))
        vectors.append(torch.nn.functional.normalize(outputs.embeddings[0, iou.argmax(0)], dim=-1))
    likeness = (vectors[0] @ vectors[1].T).numpy()
    names = [f"{SyntheticConfig.crowded().categories[video.labels[g]]} {g}" for g in rows]
    figure, axes = pyplot.subplots(
        1, 3, figsize=(12, 3.3), width_ratios=[1.35, 1.35, 1], layout="constrained"
    )
    for axis, frame, title in ((axes[0], t, "key frame"), (axes[1], u, "reference frame")):
        drawn = visualize.overlay(
            video.frames[frame], video.masks[frame][rows], rows, names, zoom=_ZOOM
        )
        _show(axis, drawn, f"{title} (frame {frame})")
    picture = axes[2].imshow(likeness, cmap="RdBu_r", vmin=-1, vmax=1)
    axes[2].set_xticks(range(len(rows)), names, rotation=45, ha="right", fontsize=8)
    axes[2].set_yticks(range(len(rows)), names, fontsize=8)
    axes[2].set_title("cosine of embeddings", fontsize=10)
    axes[2].set_ylabel("key frame")
    axes[2].set_xlabel("reference frame")
    figure.colorbar(picture, ax=axes[2], shrink=0.8)
    return figure


def positives(model: IDOL) -> pyplot.Figure:
    """Figure 8: positive samples of one instance that another covers in part."""
    best: tuple[int, SyntheticVideo, int, int, dict[str, Tensor]] | None = None
    for seed in SEEDS:
        video = make_video(SyntheticConfig.crowded(), seed)
        for t in range(0, len(video.frames), 2):
            rows = [g for g in range(len(video.labels)) if video.masks[t, g].sum() > 100]
            if len(rows) < 2:
                continue
            truths, outputs = truths_of(video, t, rows), outputs_of(model, video.frames[t])
            chosen = {}
            for selection in ("iou", "optimal_transport"):
                config = replace(AssignmentConfig(), selection=selection, iou_positive=0.5)
                found = contrastive_samples(outputs.logits[-1], outputs.boxes[-1], truths, config)
                chosen[selection] = torch.from_numpy(found.positives[0])
            iou = _iou(cxcywh_to_xyxy(outputs.boxes[-1, 0]), cxcywh_to_xyxy(truths.boxes[0]))
            nearest = iou.argmax(1)
            for n in range(len(rows)):
                wrong = int((chosen["iou"][n] & (nearest != n)).sum())
                right = int((chosen["optimal_transport"][n] & (nearest == n)).sum())
                if right >= 2 and (best is None or wrong > best[0]):
                    kept = {name: outputs.boxes[-1, 0][mask[n]] for name, mask in chosen.items()}
                    best = (wrong, video, t, rows[n], kept)
    assert best is not None
    _, video, t, g, kept = best
    height, width = video.frames.shape[1:3]
    scale = torch.tensor([width, height, width, height])
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3))
    titles = ("IoU above 0.5", "the instance", "optimal transport")
    shown = (kept["iou"], None, kept["optimal_transport"])
    for axis, title, boxes in zip(axes, titles, shown, strict=True):
        drawn = cv2.resize(video.frames[t], None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_CUBIC)
        if boxes is None:
            drawn = visualize.overlay(video.frames[t], video.masks[t][[g]], [g], zoom=_ZOOM)
            corners = boxes_of(video.masks[t][[g]])
        else:
            corners = cxcywh_to_xyxy(boxes) * scale
        for box in (corners * _ZOOM).round().int().tolist():
            cv2.rectangle(drawn, box[:2], box[2:], (255, 60, 40), 1)
        _show(axis, drawn, title if boxes is None else f"{title}: {len(boxes)} queries")
    return figure


def association(model: IDOL) -> pyplot.Figure:
    """Figure 9: frames around an occlusion, the newest embedding alone against a memory."""
    without = replace(TrackerConfig.released("ovis"), weighting="last", temporal_weight=True)
    trackers = {
        "newest embedding": without,
        "memory of 3, weighted": TrackerConfig.released("ovis"),
    }
    best: tuple[int, SyntheticVideo, list[FrameDetections], dict[str, list[list[int]]]] | None
    best = None
    for seed in SEEDS:
        video = make_video(SyntheticConfig.crowded(), seed)
        detector = Detector(model)
        frames = [
            found
            for t, frame in enumerate(video.frames)
            for found in detector.detect([detector.prepare(frame)], [t])
        ]
        ids = {name: _ids(frames, config) for name, config in trackers.items()}
        wrong = {name: _switches(video, frames, found) for name, found in ids.items()}
        gain = wrong["newest embedding"] - wrong["memory of 3, weighted"]
        if best is None or gain > best[0]:
            best = (gain, video, frames, ids)
    assert best is not None
    _, video, frames, ids = best
    differing = [
        t
        for t in range(len(frames))
        if ids["newest embedding"][t] != ids["memory of 3, weighted"][t]
    ]
    middle = min(max(differing[0], 2), len(frames) - 3) if differing else len(frames) // 2
    shown = [middle - 2, middle, min(middle + 2, len(frames) - 1)]
    figure, axes = pyplot.subplots(len(trackers), len(shown), figsize=(12, 5.6))
    for line, (name, found) in zip(axes, ids.items(), strict=True):
        for axis, t in zip(line, shown, strict=True):
            detections = frames[t]
            rows = [
                n
                for n, track_id in enumerate(found[t])
                if track_id >= 0 and detections.scores[n] >= _SHOWN
            ]
            masks = rle.decode_masks(
                [detections.masks[n] for n in rows], tuple(video.frames.shape[1:3])
            )
            texts = [f"id {found[t][n]}" for n in rows]
            drawn = visualize.overlay(
                video.frames[t], masks, [found[t][n] for n in rows], texts, zoom=_ZOOM
            )
            _show(axis, drawn, f"{name}, frame {t}")
    return figure


def _ids(frames: Sequence[FrameDetections], config: TrackerConfig) -> list[list[int]]:
    tracker = Tracker(config)
    return [tracker.update(frame).tolist() for frame in frames]


def _switches(
    video: SyntheticVideo, frames: Sequence[FrameDetections], ids: Sequence[Sequence[int]]
) -> int:
    """How often an instance is shown by another identity than before."""
    last: dict[int, int] = {}
    switches = 0
    for t, frame in enumerate(frames):
        masks = rle.decode_masks(frame.masks, tuple(video.frames.shape[1:3])).astype(bool)
        for n, track_id in enumerate(ids[t]):
            if track_id < 0 or frame.scores[n] < _SHOWN:
                continue
            shared = (masks[n] & video.masks[t]).sum((1, 2))
            union = (masks[n] | video.masks[t]).sum((1, 2))
            g = int((shared / np.maximum(union, 1)).argmax())
            if shared[g] / max(union[g], 1) >= 0.5:
                switches += last.setdefault(g, track_id) != track_id
                last[g] = track_id
    return switches


def _iou(one: Tensor, two: Tensor) -> Tensor:
    from idol.masks.boxes import box_iou

    return box_iou(one, two)


def _show(axis: pyplot.Axes, image: Image, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = idol.load("shipped")
    torch.set_num_threads(1)
    for draw in (embeddings, positives, association):
        draw(model).savefig(
            out / f"{draw.__name__}.jpg",
            dpi=110,
            bbox_inches="tight",
            pil_kwargs={"quality": 85},
        )
        print(out / f"{draw.__name__}.jpg", flush=True)


if __name__ == "__main__":
    main()
