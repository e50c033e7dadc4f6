"""The losses, each a pure function of tensors (paper Sec. 3.1, 3.2; specification 3.3, 3.4).

idol/learning/criterion.py divides them by the number of positives and weighs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from idol.config import LossConfig
from idol.masks.boxes import cxcywh_to_xyxy, elementwise_giou


def weighted_sum(named: Mapping[str, Tensor], weights: LossConfig) -> Tensor:
    """The sum () of losses by name, loss_<field of weights>, also with suffix _<decoder layer>."""
    weighted = []
    for name, value in named.items():
        kind = name.removeprefix("loss_")
        head, _, layer = kind.rpartition("_")
        weighted.append(getattr(weights, head if layer.isdigit() else kind) * value)
    return torch.stack(weighted).sum()


def sigmoid_focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of every element, not reduced (Lin et al. 2017, Eq. 5).

    logits:  (...)
    targets: (...) bool, or numbers that are 0 or 1
    returns: (...) alpha_t (1 - p_t)^gamma (-log p_t): for a target of 1 p_t = σ(logits) and
             alpha_t = alpha, for a target of 0 one minus these
    """
    # With z = -x for a target of 1 and x for 0: 1 - p_t = σ(z) and -log p_t = softplus(z), which
    # cannot overflow. The product below is 1.6 times faster than torch.where.
    targets = targets.to(logits.dtype)
    z = logits * (1 - 2 * targets)
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    return weight * z.sigmoid() ** gamma * F.softplus(z)


def soft_mask_losses(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """mask_losses of soft targets, as IFC has them (its specification 3.3).

    logits:  (n, ...)
    targets: (n, ...) in [0, 1]
    returns: (n,) mean over the pixels of alpha_t (1 - p_t)^gamma times the cross-entropy, with
             p_t = p t + (1 - p)(1 - t) and alpha_t = alpha t + (1 - alpha)(1 - t)
             (n,) dice loss
    """
    x, t = logits.flatten(1), targets.flatten(1)
    p = x.sigmoid()
    missed = p + t - 2 * p * t  # 1 - p_t
    weight = alpha * t + (1 - alpha) * (1 - t)
    entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    focal = (weight * missed**gamma * entropy).mean(1)
    return focal, 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def mask_losses(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss (Milletari et al. 2016) of each mask. Differentiable once.

    Plain autograd keeps about six copies of all masks until the backward pass, which is gigabytes
    in a crowded frame; this keeps none and is six times faster on a CPU.

    logits:  (n, h, w)
    targets: (n, h, w) bool
    returns: (n,) mean over the pixels of sigmoid_focal
             (n,) 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), p = σ(logits)
    """
    rows = logits.flatten(1), targets.flatten(1)
    focal, dice = _MaskLosses.apply(*rows, alpha, gamma)  # type: ignore[no-untyped-call]
    return focal, dice


class _MaskLosses(torch.autograd.Function):
    """mask_losses on (n, pixels), with the gradient written out.

    u = σ(z) is 1 - p_t and l = softplus(z) is -log p_t, as in sigmoid_focal; so u' = u (1 - u),
    l' = u, and the focal loss u^gamma l has the derivative gamma u^gamma (1 - u) l + u^(gamma+1).
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, alpha: float, gamma: float
    ) -> tuple[Tensor, Tensor]:
        focal, inside, total = (logits.new_empty(len(logits)) for _ in range(3))
        for rows in _pieces(logits):
            x, t = logits[rows], targets[rows].to(logits.dtype)
            focal[rows] = sigmoid_focal(x, t, alpha, gamma).mean(1)
            p = x.sigmoid()
            total[rows] = p.sum(1) + t.sum(1) + 1
            inside[rows] = 2 * p.mul_(t).sum(1) + 1
        ctx.save_for_backward(logits, targets, inside, total)
        ctx.alpha, ctx.gamma = alpha, gamma
        return focal, 1 - inside / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, on_focal: Tensor, on_dice: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, inside, total = ctx.saved_tensors
        alpha, gamma = ctx.alpha, ctx.gamma
        on_focal = (on_focal / logits.shape[1])[:, None]
        # d dice / d p = inside / total^2 - 2 t / total
        everywhere = (on_dice * inside / total**2)[:, None]
        on_truth = (on_dice * 2 / total)[:, None]
        gradient = torch.empty_like(logits)
        for rows in _pieces(logits):
            x, t = logits[rows], targets[rows].to(logits.dtype)
            p = x.sigmoid()
            torch.sub(everywhere[rows], on_truth[rows] * t, out=gradient[rows])
            gradient[rows] *= p.mul_(1 - p)
            sign = 1 - 2 * t
            z = x * sign
            u = z.sigmoid()
            slope = F.softplus(z).mul_(1 - u).mul_(gamma).add_(u).mul_(u**gamma)
            weight = sign.mul_((1 - alpha) + (2 * alpha - 1) * t)
            gradient[rows] += slope.mul_(weight).mul_(on_focal[rows])
        return gradient, None, None, None


def _pieces(masks: Tensor) -> Iterator[slice]:
    """Slices of rows of (n, pixels) that fit a CPU's cache, or bounded accelerator memory."""
    pixels = 1 << 16 if masks.device.type == "cpu" else 1 << 26
    step = max(1, pixels // max(1, masks.shape[1]))
    for start in range(0, len(masks), step):
        yield slice(start, start + step)


def box_l1(boxes: Tensor, targets: Tensor) -> Tensor:
    """Absolute differences of boxes and targets, (n, 4) cxcywh, summed over the four: (n,)."""
    return (boxes - targets).abs().sum(-1)


def box_giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019) of boxes with targets, (n, 4) cxcywh: (n,) in [0, 2]."""
    return 1 - elementwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))


def contrastive_rows(similarities: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Multi-positive contrastive loss (paper Eq. 4) of many instances.

    similarities: (n, Q) v.k of each instance's key embedding with every reference embedding
    positives:    (n, Q) bool, k+ of each instance
    negatives:    (n, Q) bool, k- of each instance
    returns:      (n,)   log(1 + sum over p, n of exp(v.k-_n - v.k+_p)); 0 where an instance has no
                         positive or no negative
    """
    # The double sum factorises into sum_n exp(v.k-) * sum_p exp(-v.k+): m1 + m2 terms instead
    # of m1 * m2, and softplus(logsumexp) cannot overflow.
    either = positives.any(1) & negatives.any(1)
    # An empty sum would be -inf, with a gradient of NaN: such rows keep all terms, then count 0.
    rest = ~either[:, None]
    high = similarities.masked_fill(~(negatives | rest), -torch.inf).logsumexp(1)
    low = (-similarities).masked_fill(~(positives | rest), -torch.inf).logsumexp(1)
    return F.softplus(high + low) * either


def cosine_rows(cosines: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Auxiliary embedding loss of the released code (specification 3.3) of many instances.

    cosines:   (n, Q) cosine of each instance's key embedding with every reference embedding
    positives: (n, Q) bool, target 1
    negatives: (n, Q) bool, the sampled ones, target 0
    returns:   (n,)   mean over both of (cosine - target)²; 0 where an instance has neither. A
                      query that is positive and negative counts twice
    """
    error = (cosines - 1) ** 2 * positives + cosines**2 * negatives
    return error.sum(1) / (positives.sum(1) + negatives.sum(1)).clamp(min=1)
