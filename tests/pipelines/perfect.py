"""Detections made from the truth: a detector without fault, and appearances as one wants them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco

import idol
from idol.config import Config, TrackerConfig
from idol.evaluation.overlaps import frame_overlap
from idol.network.model import IDOL
from idol.structures import FrameDetections
from idol.weights import checkpoint
from pipelines.sources.annotations import Dataset
from pipelines.stages import detect, shard_plan
from pipelines.storage import claims, layout, schemas, tables
from pipelines.storage.manifest import Manifest

EMBEDDING_SIZE = 16


def run(
    dataset: Dataset,
    model: IDOL,
    out: Path,
    config: Config,
    *,
    actors: int | None = None,
    gpu: bool | None = None,
    overwrite: bool = False,
    reject_limit: float | None = None,
    on_shard: Callable[[int], None] | None = None,
) -> Manifest:
    """In the place of detect.run: every visible instance is found, and nothing else.

    An instance's embedding turns by a fixed angle from frame to frame, with a cosine of 0.95
    between neighbours; different instances are at right angles.
    """
    shards = shard_plan.plan(dataset.videos, config.detect.frames_per_shard)
    output = claims.prepare_output(
        out,
        "detect",
        detect.claim(config),
        detect.input_hash(dataset, model),
        frames=dataset.frames,
        overwrite=overwrite,
    )
    if output.finished is not None:
        return output.finished
    labels = {
        v.video_id: [dataset.labels[i.category_id] for i in v.instances] for v in dataset.videos
    }
    for number, pieces in enumerate(shards):
        found: list[dict[str, Any]] = []
        overlaps: list[dict[str, Any]] = []
        for piece in pieces:
            for offset in range(len(piece.frames)):
                truth = [instance[offset] for instance in piece.truth]
                frame = _frame(
                    piece.start + offset, truth, labels[piece.video_id], piece.size, config
                )
                found.append(schemas.detections_to_row(frame, piece.video_id, piece.size))
                measured = frame_overlap(frame.masks, truth, piece.size, frame.frame_index)
                overlaps.append(schemas.overlap_to_row(measured, piece.video_id))
        tables.commit(
            schemas.table(overlaps, schemas.OVERLAP), layout.shard_path(out, number, "overlap")
        )
        tables.commit(schemas.table(found, schemas.DETECTIONS), output.shard(number))
    return output.finish(
        total_shards=len(shards),
        rejects=dataset.rejects,
        extra={
            "videos": [v.to_json() for v in shard_plan.stored_videos(shards).values()],
            "num_classes": len(dataset.categories),
            "embedding_size": EMBEDDING_SIZE,
            "truth": True,
        },
    )


def weights(path: Path) -> Path:
    """A tiny untrained network of two classes."""
    preset = idol.presets.tiny()
    config = replace(
        preset,
        model=replace(preset.model, num_classes=2, width=16, num_heads=2, feedforward=16),
        tracker=TrackerConfig.robust(),
    )
    return checkpoint.save(idol.IDOL(config), path)


def _frame(
    index: int,
    truth: Sequence[bytes | None],
    labels: Sequence[int],
    size: tuple[int, int],
    config: Config,
) -> FrameDetections:
    here = [g for g, counts in enumerate(truth) if counts is not None]
    masks = tuple(counts for counts in truth if counts is not None)
    class_scores = torch.full((len(here), len(config.categories)), 0.01)
    embeddings = torch.zeros(len(here), EMBEDDING_SIZE)
    angle = index * float(np.arccos(0.95))
    for row, g in enumerate(here):
        # Rows in descending score; the first instance is the surest.
        class_scores[row, labels[g]] = 0.9 - 0.01 * row
        plane = 2 * (g % (EMBEDDING_SIZE // 2))
        embeddings[row, plane], embeddings[row, plane + 1] = np.cos(angle), np.sin(angle)
    rles = [{"size": list(size), "counts": counts} for counts in masks]
    boxes = np.asarray(coco.toBbox(rles) if rles else np.zeros((0, 4)), np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return FrameDetections(
        frame_index=index,
        scores=class_scores.amax(1) if here else torch.zeros(0),
        class_scores=class_scores,
        embeddings=embeddings,
        overlaps=torch.eye(len(here)),
        boxes=torch.from_numpy(boxes),
        masks=masks,
    )
