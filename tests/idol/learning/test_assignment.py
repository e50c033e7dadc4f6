"""Assignment and selection: the released code's stored decisions, and the laws behind them."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.config import AssignmentConfig
from idol.learning import assignment
from idol.learning.assignment import Assignment, Truths, iou_and_giou
from idol.masks.boxes import box_iou, cxcywh_to_xyxy, pairwise_giou

CONFIG = AssignmentConfig()
EXACT = AssignmentConfig(cost="exact", repair="exact")


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


def truths(labels, boxes, valid=None):
    valid = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    return Truths(labels, boxes, valid)


def cost_matrix(logits, boxes, labels, truth, config):
    return assignment.cost_matrix(logits, boxes, truths(labels, truth), config)


def assign_queries(logits, boxes, labels, truth, config, valid=None):
    return assignment.assign_queries(logits, boxes, truths(labels, truth, valid), config)


def contrastive_samples(logits, boxes, labels, truth, config, valid=None):
    return assignment.contrastive_samples(logits, boxes, truths(labels, truth, valid), config)


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
def stored(shared) -> np.lib.npyio.NpzFile:
    return np.load(shared / "reference/oracle/ota.npz")


@pytest.mark.parametrize("case", [f"c{i:02d}" for i in range(48)])
def test_stored_cases_of_the_released_code_are_reproduced(case, stored):
    logits, boxes, labels, truth = (
        torch.from_numpy(stored[f"{case}/{name}"])
        for name in ("logits", "boxes", "gt_labels", "gt_boxes")
    )
    valid = torch.from_numpy(stored[f"{case}/ref_valid"])
    found = assign_queries(logits, boxes, labels, truth, CONFIG)
    chosen = contrastive_samples(logits, boxes, labels, truth, CONFIG, valid)
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
    found = assign_queries(*arguments, CONFIG)
    np.testing.assert_array_equal(found.truth, np.where(matched.any(1), matched.argmax(1), -1))
    np.testing.assert_array_equal(
        found.best, np.where(matched | ~matched.any(0), cost, np.inf).argmin(0)
    )

    chosen = contrastive_samples(*arguments, CONFIG)
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
    found = assign_queries(logits, boxes, labels, truth, CONFIG, valid)
    chosen = contrastive_samples(logits, boxes, labels, truth, CONFIG, valid)
    for layer in range(2):
        for b, (part, count) in enumerate(zip(parts, counts, strict=True)):
            alone = assign_queries(logits[layer, b], *part[1:], CONFIG)
            np.testing.assert_array_equal(found.truth[layer, b], alone.truth)
            np.testing.assert_array_equal(found.best[layer, b, :count], alone.best)
            assert (found.best[layer, b, count:] == -1).all()
            apart = contrastive_samples(logits[layer, b], *part[1:], CONFIG)
            np.testing.assert_array_equal(chosen.positives[layer, b, :count], apart.positives)
            np.testing.assert_array_equal(chosen.negatives[layer, b, :count], apart.negatives)
            assert not chosen.positives[layer, b, count:].any()
            assert not chosen.negatives[layer, b, count:].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), num_truths=st.integers(1, 6))
def test_order_of_the_queries_changes_nothing_but_their_numbers(seed, num_truths):
    logits, boxes, labels, truth = problem(seed, 30, num_truths)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    found = assign_queries(logits, boxes, labels, truth, CONFIG)
    moved = assign_queries(logits[order], boxes[order], labels, truth, CONFIG)
    np.testing.assert_array_equal(moved.truth, found.truth[order.numpy()])
    np.testing.assert_array_equal(order.numpy()[moved.best], found.best)


def test_a_perfect_query_answers_for_its_truth_and_one_far_off_for_none():
    logits = torch.full((3, 2), -4.0)
    logits[0, 1] = 4.0
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1], [0.1, 0.9, 0.1, 0.1]])
    found = assign_queries(logits, boxes, torch.tensor([1]), boxes[:1], CONFIG)
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
    iou, giou = iou_and_giou(boxes, truth)
    torch.testing.assert_close(iou, box_iou(a, b), rtol=0, atol=1e-6)
    torch.testing.assert_close(giou, pairwise_giou(a, b), rtol=0, atol=1e-6)


def test_without_truths_every_query_is_background():
    logits, boxes, labels, truth = problem(0, 10, 0)
    found = assign_queries(logits, boxes, labels, truth, CONFIG)
    assert isinstance(found, Assignment)
    assert not found.positive.any()
    assert found.positive.shape == (10,)
    assert found.best.shape == (0,)
    assert contrastive_samples(logits, boxes, labels, truth, CONFIG).negatives.shape == (0, 10)


def test_more_truths_than_queries_ends_and_uses_every_query():
    logits, boxes, labels, truth = problem(3, 2, 6)
    found = assign_queries(logits, boxes, labels, truth, CONFIG)
    assert found.positive.all()
    assert ((found.best >= 0) & (found.best < 2)).all()


def test_a_truth_without_area_gets_a_query_and_no_nan():
    logits, boxes, labels, truth = problem(4, 10, 2)
    truth[1, 2:] = 0
    boxes[3, 2:] = 0  # 0 / 0 where both are points
    found = assign_queries(logits, boxes, labels, truth, CONFIG)
    assert set(found.truth) >= {0, 1}


def test_logits_that_are_not_finite_are_refused_by_row():
    logits, boxes, labels, truth = problem(5, 10, 2)
    logits = logits.repeat(3, 1, 1)
    logits[1, 4] = torch.nan
    many = [x.expand(3, *x.shape) for x in (boxes, labels, truth)]
    with pytest.raises(FloatingPointError, match=r"row \(1,\).*learning_rate"):
        assign_queries(logits, *many, CONFIG)
    with pytest.raises(FloatingPointError, match="finite"):
        contrastive_samples(logits, *many, CONFIG)


def test_wrong_shapes_are_refused_with_the_rule():
    logits, boxes, labels, truth = problem(6, 10, 2)
    with pytest.raises(ValueError, match=r"boxes must have shape \(\.\.\., Q, 4\)"):
        assign_queries(logits, boxes[:9], labels, truth, CONFIG)
    with pytest.raises(ValueError, match=r"truth boxes must have shape \(\.\.\., G, 4\)"):
        assign_queries(logits, boxes, labels, truth[:1], CONFIG)
    with pytest.raises(ValueError, match="valid must have the shape of labels"):
        assign_queries(logits, boxes, labels, truth, CONFIG, torch.ones(3, dtype=torch.bool))


def test_cost_of_the_paper_is_class_and_box_without_a_centre_prior():
    # As above: class cost -ln(2) / 8 and GIoU 1/2; |dx| = 0.1 and nothing else differs.
    boxes, truth = torch.tensor([[0.5, 0.5, 0.3, 0.2]]), torch.tensor([[0.4, 0.5, 0.3, 0.2]])
    paper = AssignmentConfig.paper()
    arguments = (torch.zeros(1, 1), boxes, torch.tensor([0]), truth)
    cost, iou = cost_matrix(*arguments, paper)
    assert cost.item() == pytest.approx(2 * -np.log(2) / 8 + 5 * 0.1 - 2 * 0.5, rel=1e-5)
    assert iou.item() == pytest.approx(0.5)
    only_boxes = dataclasses.replace(paper, paper_weights=(0.0, 1.0, 0.0))
    assert cost_matrix(*arguments, only_boxes)[0].item() == pytest.approx(0.1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), num_truths=st.integers(1, 6))
def test_exact_costs_are_the_released_ones_without_their_rounding(seed, num_truths):
    arguments = problem(seed, 30, num_truths, spread=0.9)
    released, _ = cost_matrix(*arguments, CONFIG)
    exact, _ = cost_matrix(*arguments, EXACT)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), released, rtol=1e-6, atol=1e-5)
    # Where no penalty was added there was no rounding.
    near = exact < 50
    assert torch.equal(exact[near].float(), released[near])


def test_exact_costs_tell_far_queries_apart_that_the_released_sum_confuses():
    # Both far off any truth: 10100 and something, where a step of float32 is 1/1024.
    logits = torch.tensor([[0.0], [0.0005]])
    boxes = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]])
    truth = (torch.tensor([0]), torch.tensor([[0.1, 0.1, 0.1, 0.1]]))
    released, _ = cost_matrix(logits, boxes, *truth, CONFIG)
    exact, _ = cost_matrix(logits, boxes, *truth, EXACT)
    assert released[0] == released[1]
    assert exact[1] < exact[0]
    assert assign_queries(logits, boxes, *truth, EXACT).best.tolist() == [1]
    assert assign_queries(logits, boxes, *truth, CONFIG).best.tolist() == [0]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_queries=st.integers(1, 30),
    num_truths=st.integers(1, 10),
    spread=st.sampled_from([0.02, 0.3, 0.9]),
    cost=st.sampled_from(["released", "exact", "paper"]),
)
def test_exact_repair_gives_every_truth_a_query_of_its_own_while_there_are_enough(
    seed, num_queries, num_truths, spread, cost
):
    arguments = problem(seed, num_queries, num_truths, spread=spread)
    config = AssignmentConfig(cost=cost, repair="exact")
    found = assign_queries(*arguments, config)
    served = np.unique(found.truth[found.positive])
    assert len(served) == min(num_queries, num_truths)
    for g in served:
        assert found.truth[found.best[g]] == g
    chosen = contrastive_samples(*arguments, config)
    assert (chosen.positives.sum(0) <= 1).all()
    assert chosen.positives.any(1).sum() == min(num_queries, num_truths)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_truths=st.integers(1, 6),
    spread=st.sampled_from([0.02, 0.3, 0.9]),
)
def test_exact_repair_changes_nothing_where_nothing_needs_repair(seed, num_truths, spread):
    arguments = problem(seed, 40, num_truths, spread=spread)
    cost, iou = (x.numpy().copy() for x in cost_matrix(*arguments, CONFIG))
    k = np.maximum(np.sort(iou, 0)[::-1][: CONFIG.candidates].sum(0).astype(int), 1)
    matched = np.zeros(cost.shape, bool)
    for g in range(num_truths):
        matched[np.argsort(cost[:, g], kind="stable")[: k[g]], g] = True
    contested = matched.sum(1) > 1
    matched[contested] = np.eye(num_truths, dtype=bool)[cost[contested].argmin(1)]
    released, exact = (
        assign_queries(*arguments, AssignmentConfig(repair=name)) for name in ("released", "exact")
    )
    if matched.any(0).all():
        np.testing.assert_array_equal(exact.truth, released.truth)
        np.testing.assert_array_equal(exact.best, released.best)
    else:
        # Truths that lost nothing keep what they had.
        kept = np.flatnonzero(matched.any(0))
        for g in kept:
            np.testing.assert_array_equal(exact.truth == g, matched[:, g])


def test_truths_that_chose_one_query_get_two_with_the_exact_repair():
    # Three truths in one place, and only query 0 near: two are left over and both want query 1.
    truth = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).repeat(3, 1)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.7, 0.5, 0.2, 0.2], [0.9, 0.5, 0.2, 0.2]])
    arguments = (torch.zeros(3, 1), boxes, torch.zeros(3, dtype=torch.int64), truth)
    released = assign_queries(*arguments, CONFIG)
    assert released.truth.tolist() == [0, 1, -1]
    assert released.best.tolist() == [0, 1, 1]
    exact = assign_queries(*arguments, AssignmentConfig(repair="exact"))
    assert sorted(exact.truth.tolist()) == sorted(exact.best.tolist()) == [0, 1, 2]


def test_exact_repair_takes_back_spare_queries_when_no_free_one_is_left():
    # The first truth has both queries (k = 2); the second, far off, gets the one it needs less.
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2]])
    truth = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]])[:2]
    # A third box on top makes the sum of IoUs reach 2.
    boxes = torch.cat([boxes, torch.tensor([[0.3, 0.31, 0.2, 0.2]])])
    logits = torch.zeros(3, 1)
    labels = torch.zeros(2, dtype=torch.int64)
    found = assign_queries(logits, boxes, labels, truth, AssignmentConfig(repair="exact"))
    assert (found.truth == 0).sum() == 2
    few = assign_queries(logits[:2], boxes[:2], labels, truth, AssignmentConfig(repair="exact"))
    assert few.truth.tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_queries=st.integers(8, 40),
    num_truths=st.integers(1, 6),
    spread=st.sampled_from([0.02, 0.3, 0.9]),
)
def test_selection_of_the_paper_is_a_2_word_for_word(seed, num_queries, num_truths, spread):
    arguments = problem(seed, num_queries, num_truths, spread=spread)
    paper = AssignmentConfig.paper()
    cost, iou = (x.numpy() for x in cost_matrix(*arguments, paper))
    chosen = contrastive_samples(*arguments, paper)
    for g in range(num_truths):
        overlaps = np.sort(iou[:, g])[::-1]
        m1, m2 = (max(1, int(overlaps[:n].sum(dtype=np.float32))) for n in (10, 100))
        ascending = np.argsort(cost[:, g], kind="stable")
        np.testing.assert_array_equal(np.flatnonzero(chosen.positives[g]), np.sort(ascending[:m1]))
        highest = ascending[m2:]
        assert len(highest) == num_queries - m2
        np.testing.assert_array_equal(np.flatnonzero(chosen.negatives[g]), np.sort(highest))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), num_truths=st.integers(1, 6))
def test_positives_and_negatives_follow_their_own_option(seed, num_truths):
    arguments = problem(seed, 30, num_truths, spread=0.05)
    both = {
        (p, n): contrastive_samples(*arguments, AssignmentConfig(positives=p, negatives=n))
        for p in ("released", "paper")
        for n in ("released", "paper")
    }
    for p in ("released", "paper"):
        np.testing.assert_array_equal(both[p, "paper"].positives, both[p, "released"].positives)
        assert not (both[p, "paper"].positives & both[p, "paper"].negatives).any()
    taken = both["released", "paper"].positives
    np.testing.assert_array_equal(
        both["released", "paper"].negatives, both["paper", "paper"].negatives & ~taken
    )


def test_iou_selection_of_hand_worked_boxes():
    # Truth 0.4 wide. Shifts of 0.04, 0.1, 0.2, 0.36: IoU (0.4 - s) / (0.4 + s) = 0.818, 0.6,
    # 1/3, 0.053; the second truth, of another place, makes everything negative but its own.
    shifts = torch.tensor([0.0, 0.04, 0.1, 0.2, 0.36])
    boxes = torch.stack([0.3 + shifts, *[torch.full((5,), v) for v in (0.3, 0.4, 0.2)]], 1)
    truth = torch.tensor([[0.3, 0.3, 0.4, 0.2], [0.3, 0.9, 0.4, 0.2], [0.3, 0.3, 0.4, 0.2]])
    labels = torch.zeros(3, dtype=torch.int64)
    config = AssignmentConfig(selection="iou")
    valid = torch.tensor([True, True, False])
    chosen = contrastive_samples(torch.zeros(5, 1), boxes, labels, truth, config, valid)
    np.testing.assert_array_equal(np.flatnonzero(chosen.positives[0]), [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(chosen.negatives[0]), [4])
    assert not chosen.positives[1].any()
    assert chosen.negatives[1].all()
    assert not chosen.positives[2].any()
    assert not chosen.negatives[2].any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    low=st.floats(0, 0.5),
    high=st.floats(0.5, 1),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
def test_iou_selection_is_two_strict_thresholds_in_every_image(seed, low, high, counts):
    config = AssignmentConfig(selection="iou", iou_negative=low, iou_positive=high)
    parts = [problem(seed + i, 25, max(counts), spread=0.2) for i in range(len(counts))]
    logits, boxes, labels, truth = (torch.stack(x) for x in zip(*parts, strict=True))
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    chosen = contrastive_samples(logits, boxes, labels, truth, config, valid)
    iou = np.stack([box_iou(cxcywh_to_xyxy(b), cxcywh_to_xyxy(t)).T.numpy() for b, t in zip(
        boxes, truth, strict=True)])  # fmt: skip
    clear = np.minimum(abs(iou - low), abs(iou - high)) > 1e-6
    here = valid.numpy()[..., None]
    np.testing.assert_array_equal(chosen.positives[clear], ((iou > high) & here)[clear])
    np.testing.assert_array_equal(chosen.negatives[clear], ((iou < low) & here)[clear])


def test_iou_selection_refuses_boxes_that_are_not_finite():
    logits, boxes, labels, truth = problem(5, 10, 2)
    boxes[4, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="finite"):
        contrastive_samples(logits, boxes, labels, truth, AssignmentConfig(selection="iou"))


def test_options_that_contradict_are_refused():
    with pytest.raises(ValueError, match="iou_negative must not exceed iou_positive"):
        AssignmentConfig(iou_negative=0.8)
    with pytest.raises(ValueError, match="paper_weights"):
        AssignmentConfig(paper_weights=(0.0, 0.0, 0.0))


def test_a_positive_of_the_released_selection_can_be_a_negative_too():
    # Won in the narrow assignment, lost in the wide one to a truth that claims more queries there.
    for seed in range(40):
        chosen = contrastive_samples(*problem(seed, 40, 6, spread=0.3), CONFIG)
        if (chosen.positives & chosen.negatives).any():
            return
    pytest.fail("no such case among 40: is the wide assignment settled on its own?")
