"""Each loss against its formula written out."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from idol import losses

F64 = torch.float64


def generator(seed):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    alpha=st.floats(0, 1),
    gamma=st.sampled_from([0.0, 1.0, 2.0, 2.5]),
)
def test_sigmoid_focal_is_its_formula(seed, alpha, gamma):
    x = 4 * torch.randn(5, 6, generator=generator(seed), dtype=F64)
    t = torch.rand(5, 6, generator=generator(seed + 1)) > 0.5
    p = x.sigmoid()
    p_t, alpha_t = torch.where(t, p, 1 - p), torch.where(t, alpha, 1 - alpha)
    expected = -alpha_t * (1 - p_t) ** gamma * p_t.log()
    torch.testing.assert_close(losses.sigmoid_focal(x, t, alpha, gamma), expected)
    torch.testing.assert_close(losses.sigmoid_focal(x, t.double(), alpha, gamma), expected)


def test_sigmoid_focal_survives_extreme_logits_with_finite_gradients():
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4]).repeat(2).requires_grad_()
    t = torch.arange(10) < 5
    loss = losses.sigmoid_focal(x, t, 0.25, 2.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert x.grad.isfinite().all()
    assert loss[0].item() == pytest.approx(0.25 * 1e4)
    assert loss[4].item() == 0.0


def test_mask_focal_is_the_mean_over_pixels():
    x, t = torch.randn(3, 4, 5, generator=generator(0)), torch.ones(3, 4, 5, dtype=torch.bool)
    each = losses.sigmoid_focal(x, t, 0.25, 2.0)
    torch.testing.assert_close(losses.mask_focal(x, t, 0.25, 2.0), each.mean((1, 2)))


def test_dice_of_hand_worked_masks():
    # p = 1/2 on four pixels, truth covers one: 1 - (2 * 1/2 + 1) / (2 + 1 + 1) = 1/2.
    t = torch.tensor([[[True, False], [False, False]]])
    assert losses.dice(torch.zeros(1, 2, 2), t).item() == pytest.approx(0.5)
    # Nothing predicted, nothing there: the added 1 makes it a perfect 0.
    assert losses.dice(torch.full((1, 2, 2), -1e4), t & False).item() == 0.0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_dice_is_its_formula(seed):
    x = 3 * torch.randn(4, 3, 5, generator=generator(seed), dtype=F64)
    t = torch.rand(4, 3, 5, generator=generator(seed + 1)) > 0.5
    for i, value in enumerate(losses.dice(x, t)):
        p, m = x[i].sigmoid(), t[i].double()
        expected = 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)
        torch.testing.assert_close(value, expected)


def test_box_losses_of_hand_worked_boxes():
    a = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.25, 0.5, 0.5, 1.0]])
    b = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.75, 0.5, 0.5, 1.0]])
    torch.testing.assert_close(losses.box_l1(a, b), torch.tensor([0.0, 0.5]))
    # Same box: GIoU 1. Two halves of the unit square: IoU 0, hull = union, GIoU 0.
    torch.testing.assert_close(losses.box_giou(a, b), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(num_pos=st.integers(0, 6), num_neg=st.integers(0, 6), seed=st.integers(0, 2**16))
def test_contrastive_loss_is_eq_4_written_out(num_pos, num_neg, seed):
    g = generator(seed)
    v, pos, neg = (torch.randn(n, 8, generator=g, dtype=F64) for n in (1, num_pos, num_neg))
    expected = torch.log(1 + torch.exp((neg @ v[0])[None] - (pos @ v[0])[:, None]).sum())
    torch.testing.assert_close(losses.contrastive_loss(v[0], pos, neg), expected)


def test_contrastive_loss_does_not_overflow():
    v = torch.full((4,), 100.0, requires_grad=True)
    loss = losses.contrastive_loss(v, -torch.ones(2, 4), torch.ones(3, 4))
    loss.backward()
    # 400 - (-400), plus log of the 2 * 3 equal terms.
    assert loss.item() == pytest.approx(800 + torch.tensor(6.0).log().item())
    assert v.grad.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_many_instances_at_once_are_each_alone_and_empty_ones_have_no_gradient(seed):
    g = generator(seed)
    similarities = torch.randn(6, 9, generator=g, dtype=F64, requires_grad=True)
    positives = torch.rand(6, 9, generator=g) < 0.3
    negatives = ~positives & (torch.rand(6, 9, generator=g) < 0.5)
    positives[0], negatives[1] = False, False
    rows = losses.contrastive_rows(similarities, positives, negatives)
    for i, row in enumerate(rows):
        s = similarities[i].detach()
        pairs = s[negatives[i]][None] - s[positives[i]][:, None]
        torch.testing.assert_close(row.detach(), torch.log(1 + pairs.exp().sum()))
    rows.sum().backward()
    assert similarities.grad.isfinite().all()
    assert (similarities.grad[:2] == 0).all()
    assert (similarities.grad[~(positives | negatives)] == 0).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_cosine_loss_is_the_mean_square_over_positives_and_sampled_negatives(seed):
    g = generator(seed)
    v, others = (torch.randn(n, 8, generator=g, dtype=F64) for n in (4, 9))
    cosines = F.cosine_similarity(v[:, None], others[None], dim=-1)
    positives = torch.rand(4, 9, generator=g) < 0.3
    negatives = ~positives & (torch.rand(4, 9, generator=g) < 0.5)
    positives[0], negatives[0] = False, False
    rows = losses.cosine_rows(cosines, positives, negatives)
    assert rows[0] == 0
    for i in range(1, 4):
        chosen = torch.cat([(cosines[i, positives[i]] - 1) ** 2, cosines[i, negatives[i]] ** 2])
        if len(chosen):
            torch.testing.assert_close(rows[i], chosen.mean())
