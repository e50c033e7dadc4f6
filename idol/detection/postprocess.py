"""From the network's outputs to the detections of one frame: the crossing into original pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from idol.arrays import Floats32, Ints
from idol.config import DetectConfig
from idol.masks import resize
from idol.masks.boxes import cxcywh_to_xyxy, nms
from idol.structures import FrameDetections, Outputs

if TYPE_CHECKING:
    from idol.network.model import IDOL


def select_queries(logits: Tensor, boxes: Tensor, config: DetectConfig) -> Tensor:
    """The object queries that become detections (specification 4.2).

    Score above score_floor, then class-aware box NMS, then at most max_detections; where none
    passes the floor, the single best query. Selecting at a floor and filtering at a higher
    threshold later gives the same rows as selecting at that threshold: what the threshold removes
    never suppressed a survivor.

    logits:  (Q, K) class logits of the last decoder layer
    boxes:   (Q, 4) cxcywh in units of the un-padded image
    returns: (N,)   int64 queries in descending score, N >= 1
    errors:  ValueError for logits or boxes that are not finite
    """
    broken = ~(logits.isfinite().all(dim=1) & boxes.isfinite().all(dim=1))
    if broken.any():
        bad = broken.nonzero()[:, 0]
        raise ValueError(
            f"class logits and boxes must be finite, but {len(bad)} of {len(logits)} object "
            f"queries are not; the first is query {int(bad[0])}. Check the weights and the input."
        )
    scores, labels = logits.float().sigmoid().max(dim=1)
    rows = keep(
        scores.cpu().numpy(), labels.cpu().numpy(), boxes.detach().float().cpu().numpy(), config
    )
    return torch.from_numpy(rows).to(logits.device)


def keep(scores: Floats32, labels: Ints, boxes: Floats32, config: DetectConfig) -> Ints:
    """As select_queries, from scores; its numbers are checked already.

    scores:  (Q,) best class score of every query
    labels:  (Q,) that class
    boxes:   (Q, 4) cxcywh
    returns: (N,) queries in descending score, N >= 1
    """
    rows: Ints = np.flatnonzero(scores > np.float32(config.score_floor))
    if len(rows) == 0:
        return np.array([scores.argmax()])
    order = rows[np.argsort(-scores[rows], kind="stable")]
    corners = np.concatenate(
        [
            boxes[order, :2] - np.float32(0.5) * boxes[order, 2:],
            boxes[order, :2] + np.float32(0.5) * boxes[order, 2:],
        ],
        axis=1,
    )
    kept = order[nms(corners, labels[order], config.box_nms)]
    return kept[: config.max_detections]


def finish(
    frame_index: int,
    logits: Tensor,
    boxes: Tensor,
    embeddings: Tensor,
    mask_logits: Tensor,
    input_size: tuple[int, int],
    size: tuple[int, int],
    mask_resize: resize.Method = "released",
) -> FrameDetections:
    """Selected queries to detections: scores, original pixels, overlaps, run-length masks.

    frame_index: position in the video, from 0
    logits:      (N, K) class logits, rows in descending best score
    boxes:       (N, 4) cxcywh in units of the un-padded input
    embeddings:  (N, C) contrastive embeddings
    mask_logits: (N, h/4, w/4) over the padded input
    input_size:  (height, width) of the network input without padding
    size:        (height, width) of the original frame
    mask_resize: see DetectConfig
    returns:     FrameDetections on the CPU; boxes are clipped to the frame
    errors:      ValueError for embeddings that are not finite, or sizes beyond the padded input
    """
    # Overlaps include the padded border, as in the released tracker, and are counted where the
    # logits are.
    return frame_detections(
        frame_index,
        logits.float().sigmoid().cpu(),
        boxes,
        embeddings,
        resize.overlaps(mask_logits > 0).cpu(),
        resize.resize_and_encode(mask_logits, input_size, size, mask_resize),
        size,
    )


def frame_detections(
    frame_index: int,
    class_scores: Tensor,
    boxes: Tensor,
    embeddings: Tensor,
    overlaps: Tensor,
    encoded: Sequence[bytes],
    size: tuple[int, int],
) -> FrameDetections:
    """Selected queries whose masks are made already; arguments as in `finish`, but

    class_scores: (N, K) on the CPU
    overlaps:     (N, N) mask IoU
    encoded:      N run-length masks at the original size
    """
    broken = ~embeddings.isfinite().all(dim=1)
    if broken.any():
        bad = broken.nonzero()[:, 0]
        raise ValueError(
            f"embeddings must be finite, but {len(bad)} of {len(embeddings)} detections of frame "
            f"{frame_index} are not; the first is row {int(bad[0])}. Check the weights."
        )
    height, width = size
    bounds = torch.tensor([width, height, width, height], dtype=torch.float32)
    corners = cxcywh_to_xyxy(boxes.float().cpu()) * bounds
    return FrameDetections(
        frame_index=frame_index,
        scores=class_scores.amax(dim=1),
        class_scores=class_scores,
        embeddings=embeddings.float().cpu(),
        overlaps=overlaps,
        boxes=torch.minimum(corners.clamp(min=0), bounds),
        masks=tuple(encoded),
    )


@torch.no_grad()
def detections(
    outputs: Outputs,
    model: IDOL,
    image: int,
    frame_index: int,
    input_size: tuple[int, int],
    size: tuple[int, int],
    config: DetectConfig,
) -> FrameDetections:
    """The detections of one image of a batch. Masks are made for the survivors only.

    outputs:     what model returned for the batch
    model:       makes mask logits on demand: model.masks(outputs, image, queries)
    image:       index in the batch
    frame_index: position in the video, from 0
    input_size:  (height, width) of the network input without padding
    size:        (height, width) of the original frame
    errors:      ValueError for outputs that are not finite, or sizes beyond the padded input
    """
    # One transfer instead of a synchronisation at every step of selection and NMS.
    logits = outputs.logits[-1, image].float().cpu()
    boxes = outputs.boxes[-1, image].float().cpu()
    rows = select_queries(logits, boxes, config)
    queries = rows.to(outputs.embeddings.device)
    return finish(
        frame_index,
        logits[rows],
        boxes[rows],
        outputs.embeddings[image, queries],
        model.masks(outputs, image, queries),
        input_size,
        size,
        config.mask_resize,
    )
