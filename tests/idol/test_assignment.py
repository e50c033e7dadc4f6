"""Assignment and selection: the released code's stored decisions, and the laws behind them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.assignment import Assignment, _overlaps, assign, cost_matrix, select
from idol.boxes import box_iou, cxcywh_to_xyxy, pairwise_giou
from idol.config import AssignmentConfig

CONFIG = AssignmentConfig()


def problem(seed, num_queries, num_truths, num_classes=5, spread=0.5):
    """Random logits, boxes, labels and truth boxes; a small spread makes truths compete."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_queries, num_classes, generator=g)
    centres = 0.5 + spread * (torch.rand(num_queries, 2, generator=g) - 0.5)
    boxes = torch.cat([centres, 0.05 + 0.3 * torch.rand(num_queries, 2, generator=g)], 1)
    labels = torch.randint(num_classes, (num_truths,), generator=g)
    centres = 0.5 + spread * (torch.rand(num_truths, 2, generator=g) - 0.5)
    truth = torch.cat([centres, 0.05 + 0.3 * torch.rand(num_truths, 2, generator=g)], 1)
    return logits, boxes, labels, truth


def literal(cost, iou, candidates):
    """Specification 3.1 word for word, one truth at a time; changes cost in place."""
    num_queries, num_truths = cost.shape
    matched = np.zeros(cost.shape, bool)
    for g in range(num_truths):
        k = max(1, int(np.sort(iou[:, g])[::-1][:candidates].sum(dtype=np.float32)))
        matched[np.argsort(cost[:, g], kind="stable")[:k], g] = True
    contested = np.flatnonzero(matched.sum(1) > 1)

    def settle():
        for q in contested:
            matched[q] = False
            matched[q, cost[q].argmin()] = True

    settle()
    for _ in range(num_queries + num_truths):  # the released loop may not end without this
        if matched.any(0).all():
            break
        cost[matched.any(1)] += np.float32(1e5)
        for g in np.flatnonzero(~matched.any(0)):
            matched[cost[:, g].argmin(), g] = True
        if (matched.sum(1) > 1).any():
            settle()
    return matched


@pytest.fixture(scope="module")
def stored(shared):
    return np.load(shared / "reference/oracle/ota.npz")


@pytest.mark.parametrize("case", [f"c{i:02d}" for i in range(48)])
def test_stored_cases_of_the_released_code_are_reproduced(case, stored):
    logits, boxes, labels, truth = (
        torch.from_numpy(stored[f"{case}/{name}"])
        for name in ("logits", "boxes", "gt_labels", "gt_boxes")
    )
    valid = torch.from_numpy(stored[f"{case}/ref_valid"])
    found = assign(logits, boxes, labels, truth, CONFIG)
    chosen = select(logits, boxes, labels, truth, CONFIG, valid)
    if stored[f"{case}/robust_match"]:
        np.testing.assert_array_equal(found.positive, stored[f"{case}/match_mask"])
        np.testing.assert_array_equal(found.truth[found.positive], stored[f"{case}/match_gt"])
        np.testing.assert_array_equal(found.best, stored[f"{case}/best_query"])
    if stored[f"{case}/robust_sel"]:
        np.testing.assert_array_equal(chosen.positives, stored[f"{case}/pos"])
        np.testing.assert_array_equal(chosen.negatives, stored[f"{case}/neg"])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_queries=st.integers(8, 40),
    num_truths=st.integers(1, 8),
    spread=st.sampled_from([0.02, 0.3, 0.9]),
)
def test_the_batched_assignment_is_the_specification_in_loops(
    seed, num_queries, num_truths, spread
):
    arguments = problem(seed, num_queries, num_truths, spread=spread)
    cost, iou = (x.numpy().copy() for x in cost_matrix(*arguments, CONFIG))
    raw = cost.copy()
    matched = literal(cost, iou, CONFIG.candidates)
    found = assign(*arguments, CONFIG)
    np.testing.assert_array_equal(found.truth, np.where(matched.any(1), matched.argmax(1), -1))
    np.testing.assert_array_equal(
        found.best, np.where(matched | ~matched.any(0), cost, np.inf).argmin(0)
    )

    chosen = select(*arguments, CONFIG)
    narrow = literal(raw, iou, CONFIG.candidates)
    wide = literal(raw, iou, CONFIG.negative_candidates)
    np.testing.assert_array_equal(chosen.positives, narrow.T)
    np.testing.assert_array_equal(chosen.negatives, ~wide.T)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16), num_queries=st.integers(10, 40), counts=st.lists(
        st.integers(0, 6), min_size=1, max_size=4
    ),
)  # fmt: skip
def test_a_batch_of_padded_truths_is_its_images_one_by_one(seed, num_queries, counts):
    parts = [problem(seed + i, num_queries, count) for i, count in enumerate(counts)]
    most = max(counts)
    logits, boxes = (torch.stack([part[i] for part in parts]) for i in range(2))
    labels = torch.zeros(len(counts), most, dtype=torch.int64)
    truth = torch.rand(len(counts), most, 4, generator=torch.Generator().manual_seed(seed))
    valid = torch.zeros(len(counts), most, dtype=torch.bool)
    for b, (part, count) in enumerate(zip(parts, counts, strict=True)):
        labels[b, :count], truth[b, :count], valid[b, :count] = part[2], part[3], True
    # A second decoder layer with other logits rides along on a leading axis.
    logits = torch.stack([logits, -logits])
    boxes = boxes.expand(2, *boxes.shape)
    labels, truth, valid = (x.expand(2, *x.shape) for x in (labels, truth, valid))
    found = assign(logits, boxes, labels, truth, CONFIG, valid)
    chosen = select(logits, boxes, labels, truth, CONFIG, valid)
    for layer in range(2):
        for b, (part, count) in enumerate(zip(parts, counts, strict=True)):
            alone = assign(logits[layer, b], *part[1:], CONFIG)
            np.testing.assert_array_equal(found.truth[layer, b], alone.truth)
            np.testing.assert_array_equal(found.best[layer, b, :count], alone.best)
            assert (found.best[layer, b, count:] == -1).all()
            apart = select(logits[layer, b], *part[1:], CONFIG)
            np.testing.assert_array_equal(chosen.positives[layer, b, :count], apart.positives)
            np.testing.assert_array_equal(chosen.negatives[layer, b, :count], apart.negatives)
            assert not chosen.positives[layer, b, count:].any()
            assert not chosen.negatives[layer, b, count:].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), num_truths=st.integers(1, 6))
def test_order_of_the_queries_changes_nothing_but_their_numbers(seed, num_truths):
    logits, boxes, labels, truth = problem(seed, 30, num_truths)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    found = assign(logits, boxes, labels, truth, CONFIG)
    moved = assign(logits[order], boxes[order], labels, truth, CONFIG)
    np.testing.assert_array_equal(moved.truth, found.truth[order.numpy()])
    np.testing.assert_array_equal(order.numpy()[moved.best], found.best)


def test_a_perfect_query_answers_for_its_truth_and_one_far_off_for_none():
    logits = torch.full((3, 2), -4.0)
    logits[0, 1] = 4.0
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1], [0.1, 0.9, 0.1, 0.1]])
    found = assign(logits, boxes, torch.tensor([1]), boxes[:1], CONFIG)
    np.testing.assert_array_equal(found.truth, [0, -1, -1])
    np.testing.assert_array_equal(found.best, [0])


def test_cost_of_a_hand_worked_pair():
    # p = σ(0) = 1/2: class cost 0.25 * 1/4 * ln 2 - 0.75 * 1/4 * ln 2 = -ln(2) / 8.
    # The boxes share half of each: IoU 1/3, hull = union, so GIoU 1/3. The query's centre is
    # inside the truth's box (0.2 wide) but 0.1 > 2.5 / 32 from its centre: + 100.
    boxes, truth = torch.tensor([[0.5, 0.5, 0.3, 0.2]]), torch.tensor([[0.4, 0.5, 0.3, 0.2]])
    cost, iou = cost_matrix(torch.zeros(1, 1), boxes, torch.tensor([0]), truth, CONFIG)
    assert iou.item() == pytest.approx(0.04 / 0.08)
    assert cost.item() == pytest.approx(-np.log(2) / 8 - 3 * 0.5 + 100, rel=1e-6)
    far = torch.tensor([[0.9, 0.9, 0.1, 0.1]])
    cost, _ = cost_matrix(torch.zeros(1, 1), far, torch.tensor([0]), truth, CONFIG)
    assert cost.item() > 10_100


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_overlaps_are_those_of_the_boxes_module(seed):
    _, boxes, _, truth = problem(seed, 12, 5)
    a, b = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth)
    iou, giou = _overlaps(a, b)
    torch.testing.assert_close(iou, box_iou(a, b), rtol=0, atol=1e-6)
    torch.testing.assert_close(giou, pairwise_giou(a, b), rtol=0, atol=1e-6)


def test_without_truths_every_query_is_background():
    logits, boxes, labels, truth = problem(0, 10, 0)
    found = assign(logits, boxes, labels, truth, CONFIG)
    assert isinstance(found, Assignment)
    assert not found.positive.any()
    assert found.positive.shape == (10,)
    assert found.best.shape == (0,)
    assert select(logits, boxes, labels, truth, CONFIG).negatives.shape == (0, 10)


def test_more_truths_than_queries_ends_and_uses_every_query():
    logits, boxes, labels, truth = problem(3, 2, 6)
    found = assign(logits, boxes, labels, truth, CONFIG)
    assert found.positive.all()
    assert ((found.best >= 0) & (found.best < 2)).all()


def test_a_truth_without_area_gets_a_query_and_no_nan():
    logits, boxes, labels, truth = problem(4, 10, 2)
    truth[1, 2:] = 0
    boxes[3, 2:] = 0  # 0 / 0 where both are points
    found = assign(logits, boxes, labels, truth, CONFIG)
    assert set(found.truth) >= {0, 1}


def test_logits_that_are_not_finite_are_refused_by_row():
    logits, boxes, labels, truth = problem(5, 10, 2)
    logits = logits.repeat(3, 1, 1)
    logits[1, 4] = torch.nan
    many = [x.expand(3, *x.shape) for x in (boxes, labels, truth)]
    with pytest.raises(FloatingPointError, match=r"row \(1,\).*learning_rate"):
        assign(logits, *many, CONFIG)
    with pytest.raises(FloatingPointError, match="finite"):
        select(logits, *many, CONFIG)


def test_wrong_shapes_are_refused_with_the_rule():
    logits, boxes, labels, truth = problem(6, 10, 2)
    with pytest.raises(ValueError, match=r"boxes must have shape \(\.\.\., Q, 4\)"):
        assign(logits, boxes[:9], labels, truth, CONFIG)
    with pytest.raises(ValueError, match=r"truth_boxes must have shape \(\.\.\., G, 4\)"):
        assign(logits, boxes, labels, truth[:1], CONFIG)
    with pytest.raises(ValueError, match="valid must have the shape of labels"):
        assign(logits, boxes, labels, truth, CONFIG, torch.ones(3, dtype=torch.bool))
