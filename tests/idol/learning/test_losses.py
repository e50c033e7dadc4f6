"""Each loss against its formula written out."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.learning import losses

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


def test_mask_losses_of_hand_worked_masks():
    # p = 1/2 on four pixels, truth covers one: dice 1 - (2 * 1/2 + 1) / (2 + 1 + 1) = 1/2, and
    # the focal loss of a pixel is 1/4 ln 2 times alpha once and 1 - alpha three times.
    t = torch.tensor([[[True, False], [False, False]]])
    focal, dice = losses.mask_losses(torch.zeros(1, 2, 2), t, 0.25, 2.0)
    assert dice.item() == pytest.approx(0.5)
    log2 = torch.tensor(2.0).log().item()
    assert focal.item() == pytest.approx((0.25 + 3 * 0.75) / 4 * 0.25 * log2)
    # Nothing predicted, nothing there: the added 1 makes it a perfect 0.
    focal, dice = losses.mask_losses(torch.full((1, 2, 2), -1e4), t & False, 0.25, 2.0)
    assert focal.item() == dice.item() == 0.0


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([(3, 5), (1, 1), (300, 400)]),  # the last in several pieces
    alpha=st.floats(0, 1),
    gamma=st.sampled_from([0.0, 1.0, 2.0, 2.5]),
)
def test_mask_losses_are_their_formulas_with_the_gradient_of_autograd(seed, size, alpha, gamma):
    g = generator(seed)
    x = (3 * torch.randn(4, *size, generator=g, dtype=F64)).requires_grad_()
    t = torch.rand(4, *size, generator=g) > 0.5
    weights = torch.rand(2, 4, generator=g, dtype=F64)
    p, m = x.sigmoid(), t.double()
    dice = 1 - (2 * (p * m).sum((1, 2)) + 1) / (p.sum((1, 2)) + m.sum((1, 2)) + 1)
    focal = losses.sigmoid_focal(x, t, alpha, gamma).mean((1, 2))
    (expected,) = torch.autograd.grad((weights * torch.stack([focal, dice])).sum(), x)
    got = losses.mask_losses(x, t, alpha, gamma)
    torch.testing.assert_close(got, (focal, dice))
    (gradient,) = torch.autograd.grad((weights * torch.stack(got)).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_mask_losses_survive_extreme_logits_with_finite_gradients():
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4]).repeat(2).reshape(1, 2, 5).requires_grad_()
    t = torch.tensor([[[True] * 5, [False] * 5]])
    focal, dice = losses.mask_losses(x, t, 0.25, 2.0)
    (focal + dice).sum().backward()
    assert focal.isfinite().all()
    assert x.grad.isfinite().all()
    # Far out the focal loss is alpha_t |x|, each pixel a tenth of the mean.
    assert x.grad[0, 0, 0].item() == pytest.approx(-0.025)
    assert x.grad[0, 1, 4].item() == pytest.approx(0.075)


def test_no_mask_at_all_has_no_loss():
    x = torch.zeros(0, 4, 6, requires_grad=True)
    focal, dice = losses.mask_losses(x, x.bool(), 0.25, 2.0)
    assert focal.shape == dice.shape == (0,)
    (focal.sum() + dice.sum()).backward()
    assert x.grad.shape == (0, 4, 6)


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
    positive = torch.arange(num_pos + num_neg)[None] < num_pos
    (loss,) = losses.contrastive_rows(v @ torch.cat([pos, neg]).T, positive, ~positive)
    torch.testing.assert_close(loss, expected)


def test_contrastive_loss_does_not_overflow():
    similarities = torch.tensor([[-400.0] * 2 + [400.0] * 3], requires_grad=True)
    positive = torch.tensor([[True] * 2 + [False] * 3])
    loss = losses.contrastive_rows(similarities, positive, ~positive)
    loss.sum().backward()
    # 400 - (-400), plus log of the 2 * 3 equal terms.
    assert loss.item() == pytest.approx(800 + torch.tensor(6.0).log().item())
    assert similarities.grad.isfinite().all()


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
    negatives = torch.rand(4, 9, generator=g) < 0.5  # some are positives too, and count twice
    positives[0], negatives[0] = False, False
    rows = losses.cosine_rows(cosines, positives, negatives)
    assert rows[0] == 0
    for i in range(1, 4):
        chosen = torch.cat([(cosines[i, positives[i]] - 1) ** 2, cosines[i, negatives[i]] ** 2])
        if len(chosen):
            torch.testing.assert_close(rows[i], chosen.mean())
