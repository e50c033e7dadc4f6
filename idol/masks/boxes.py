"""Boxes: formats, overlaps and non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idol.masks.greedy import greedy


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


def nms(
    boxes: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64], threshold: float
) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression within each label, on the CPU: it is sequential by nature.

    boxes:     (N, 4) xyxy, in descending score
    labels:    (N,)   boxes of different labels never suppress each other
    threshold: IoU strictly above this suppresses
    returns:   (n,)   kept rows, ascending
    """
    corners = torch.from_numpy(boxes)
    iou = box_iou(corners, corners).numpy()  # NaN for boxes without an area: suppresses nothing
    return greedy((iou > threshold) & (labels[:, None] == labels[None]))
