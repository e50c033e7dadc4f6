"""Formats, overlaps and suppression of boxes."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from idol.masks import boxes


def random_boxes(count, seed):
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=g, dtype=torch.float64)
    return torch.cat([low, low + 0.05 + torch.rand(count, 2, generator=g)], 1)


@given(count=st.integers(0, 8), seed=st.integers(0, 2**16))
def test_formats_are_inverse(count, seed):
    xyxy = random_boxes(count, seed)
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(xyxy)), xyxy)


def test_iou_and_giou_of_boxes_worked_by_hand():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [4.0, 0.0, 6.0, 2.0]])
    # First: intersection 1, union 4 + 4 - 1 = 7, hull 9. Second: apart, union 8, hull 12.
    torch.testing.assert_close(boxes.box_iou(a, b), torch.tensor([[1 / 7, 0.0]]))
    expected = torch.tensor([[1 / 7 - 2 / 9, -4 / 12]])
    torch.testing.assert_close(boxes.pairwise_giou(a, b), expected)


@given(count=st.integers(1, 8), seed=st.integers(0, 2**16))
def test_elementwise_giou_is_the_diagonal_of_the_pairwise_one(count, seed):
    a, b = random_boxes(count, seed), random_boxes(count, seed + 1)
    torch.testing.assert_close(
        boxes.elementwise_giou(a, b), boxes.pairwise_giou(a, b).diagonal(), atol=1e-6, rtol=1e-6
    )


@given(count=st.integers(0, 12), seed=st.integers(0, 2**16), threshold=st.floats(0.1, 0.9))
def test_nms_is_the_greedy_loop_written_out(count, seed, threshold):
    xyxy = random_boxes(count, seed)
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=g)
    labels = torch.randint(0, 2, (count,), generator=g)
    kept = []
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        rivals = [j for j in kept if labels[j] == labels[i]]
        if all(boxes.box_iou(xyxy[[i]], xyxy[[j]]).item() <= threshold for j in rivals):
            kept.append(i)
    order = torch.argsort(scores, descending=True, stable=True)
    rows = boxes.nms(xyxy[order].numpy(), labels[order].numpy(), threshold)
    assert order[rows].tolist() == kept


def test_boxes_without_an_area_suppress_nothing():
    empty = np.zeros((3, 4), np.float32)
    assert boxes.nms(empty, np.zeros(3, np.int64), 0.5).tolist() == [0, 1, 2]
