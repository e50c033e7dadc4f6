"""From the network's outputs to the detections of one frame, in pixels of the original frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from idol.arrays import Floats32, Ints
from idol.config import DetectConfig
from idol.masks import iou, resize
from idol.masks.boxes import cxcywh_to_xyxy, nms
from idol.network.model import IDOL
from idol.structures import FrameDetections, Outputs


def select_queries(scores: Floats32, labels: Ints, boxes: Floats32, config: DetectConfig) -> Ints:
    """The object queries that become detections (specification 4.2).

    Score above score_floor, then class-aware box NMS, then at most max_detections; if no score
    passes the floor, the single best query. Filtering these rows at a higher threshold later gives
    the same rows as selecting at that threshold, because NMS removes only lower-scored rows.

    scores:  (Q,)   best class score of every query, finite
    labels:  (Q,)   that class
    boxes:   (Q, 4) cxcywh in units of the un-padded image
    returns: (N,)   queries in descending score, N >= 1
    """
    rows: Ints = np.flatnonzero(scores > np.float32(config.score_floor))
    if len(rows) == 0:
        return np.array([scores.argmax()])
    order = rows[np.argsort(-scores[rows], kind="stable")]
    centres, halves = boxes[order, :2], np.float32(0.5) * boxes[order, 2:]
    corners = np.concatenate([centres - halves, centres + halves], axis=1)
    kept = order[nms(corners, labels[order], config.box_nms)]
    return kept[: config.max_detections]


def frame_detections(
    frame_index: int,
    class_scores: Tensor,
    boxes: Tensor,
    embeddings: Tensor,
    overlaps: Tensor,
    encoded: Sequence[bytes],
    size: tuple[int, int],
) -> FrameDetections:
    """Selected queries as FrameDetections on the CPU; boxes are clipped to the frame.

    class_scores: (N, K) on the CPU, rows in descending best score
    boxes:        (N, 4) cxcywh in units of the un-padded input
    embeddings:   (N, C)
    overlaps:     (N, N) mask IoU
    encoded:      N compressed RLE counts at the original size
    size:         (height, width) of the original frame
    Raises: ValueError: embeddings are not finite.
    """
    broken = ~embeddings.isfinite().all(dim=1)
    if broken.any():
        bad = broken.nonzero()[:, 0]
        raise ValueError(
            f"embeddings must be finite, but {len(bad)} of {len(embeddings)} detections of frame "
            f"{frame_index} are not; the first is row {int(bad[0])}. Check the weights."
        )
    height, width = size
    bounds = torch.tensor([width, height] * 2, dtype=torch.float32)
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
    """The detections of one image of a batch. Masks are made for the selected queries only.

    outputs:    what model returned for the batch
    image:      index in the batch; frame_index: position in the video, from 0
    input_size: (height, width) of the network input without padding; size: of the original frame
    Raises: ValueError: outputs are not finite, or sizes exceed the padded input.
    """
    # One transfer instead of a synchronisation at every step of selection and NMS.
    logits = outputs.logits[-1, image].float().cpu()
    boxes = outputs.boxes[-1, image].float().cpu()
    broken = ~(logits.isfinite().all(dim=1) & boxes.isfinite().all(dim=1))
    if broken.any():
        bad = broken.nonzero()[:, 0]
        raise ValueError(
            f"class logits and boxes must be finite, but {len(bad)} of {len(logits)} object "
            f"queries are not; the first is query {int(bad[0])}. Check the weights and the input."
        )
    scores, labels = logits.sigmoid().max(dim=1)
    rows = torch.from_numpy(select_queries(scores.numpy(), labels.numpy(), boxes.numpy(), config))
    queries = rows.to(outputs.embeddings.device)
    masks = model.masks(outputs, image, queries)
    # The mask IoU includes the padded border, as in the released tracker (specification 4.3).
    return frame_detections(
        frame_index,
        logits[rows].sigmoid(),
        boxes[rows],
        outputs.embeddings[image, queries],
        iou.mask_iou(masks > 0).cpu(),
        resize.resize_and_encode(masks, input_size, size, config.mask_resize),
        size,
    )
