"""Boxes: formats, overlaps and non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre, width, height → (..., 4) left, top, right, bottom; any unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom → (..., 4) centre, width, height; any unit."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersections(a: Tensor, b: Tensor) -> Tensor:
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low).clamp(min=0).prod(-1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, without an epsilon (0/0 is NaN).

    a:       (N, 4) xyxy
    b:       (M, 4) xyxy
    returns: (N, M)
    """
    inter = _intersections(a, b)
    return inter / (_areas(a)[:, None] + _areas(b)[None] - inter)


def pairwise_giou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalised IoU of every pair, IoU − (C − union) / (C + eps) (specification 3.1).

    a:       (N, 4) xyxy
    b:       (M, 4) xyxy
    returns: (N, M) in [−1, 1]
    """
    inter = _intersections(a, b)
    union = _areas(a)[:, None] + _areas(b)[None] - inter
    low = torch.minimum(a[:, None, :2], b[None, :, :2])
    high = torch.maximum(a[:, None, 2:], b[None, :, 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return inter / union - (hull - union) / (hull + eps)


def elementwise_giou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalised IoU of row i of a with row i of b, eps in both denominators (3.4).

    a, b:    (N, 4) xyxy
    returns: (N,)
    """
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = inter.prod(-1)
    union = _areas(a) + _areas(b) - inter
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    return inter / (union + eps) - (hull - union) / (hull + eps)


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each label.

    boxes:     (N, 4) xyxy
    scores:    (N,)   equal scores keep their order
    labels:    (N,)   boxes of different labels never suppress each other
    threshold: IoU strictly above this suppresses
    returns:   (n,)   kept rows, in descending score
    """
    order = torch.argsort(scores, descending=True, stable=True)
    # The loop is sequential by nature and N is small: one transfer, then plain numpy.
    overlaps = box_iou(boxes[order], boxes[order]) > threshold
    same = labels[order][:, None] == labels[order][None]
    conflict = (overlaps & same).cpu().numpy()
    alive = torch.ones(len(order), dtype=torch.bool).numpy()
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~conflict[i, i + 1 :]
    return order[torch.from_numpy(alive).to(order.device)]
