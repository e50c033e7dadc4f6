"""The losses, each a pure function of tensors (paper Sec. 3.1, 3.2; specification 3.3, 3.4).

None of them divides by the number of positives or weighs itself: idol/criterion.py does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from idol.boxes import cxcywh_to_xyxy, elementwise_giou


def sigmoid_focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of every element, not reduced (Lin et al. 2017, Eq. 5).

    logits:  (...)
    targets: (...) bool, or numbers that are 0 or 1
    returns: (...) alpha_t (1 - p_t)^gamma (-log p_t), where p_t = σ(logits) and alpha_t = alpha
             for a target of 1, and one minus that for 0
    """
    # With z = -x for a target of 1 and x for 0: 1 - p_t = σ(z) and -log p_t = softplus(z). Two
    # transcendental passes, neither overflows, and a product is 1.6 times faster than `where`.
    targets = targets.to(logits.dtype)
    z = logits * (1 - 2 * targets)
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    return weight * z.sigmoid() ** gamma * F.softplus(z)


def mask_focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss of each mask, the mean over its pixels.

    logits:  (n, h, w)
    targets: (n, h, w) bool
    returns: (n,)
    """
    return sigmoid_focal(logits, targets, alpha, gamma).flatten(1).mean(1)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask (Milletari et al. 2016), with 1 added above and below.

    logits:  (n, h, w)
    targets: (n, h, w) bool
    returns: (n,) 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), p = σ(logits)
    """
    p, t = logits.flatten(1).sigmoid(), targets.flatten(1).to(logits.dtype)
    return 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def box_l1(boxes: Tensor, targets: Tensor) -> Tensor:
    """Absolute differences of each box, summed over its four numbers.

    boxes, targets: (n, 4) cxcywh in [0, 1]
    returns:        (n,)
    """
    return (boxes - targets).abs().sum(-1)


def box_giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU of each box with its target (Rezatofighi et al. 2019).

    boxes, targets: (n, 4) cxcywh in [0, 1]
    returns:        (n,) in [0, 2]
    """
    return 1 - elementwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))


def contrastive_loss(key: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Multi-positive contrastive loss of one instance (paper Eq. 4).

    key:       (C,)    v, the instance's embedding on the key frame
    positives: (m1, C) k+, its embeddings on the reference frame
    negatives: (m2, C) k-, everything else there
    returns:   ()      log(1 + sum over p, n of exp(v.k-_n - v.k+_p)); 0 if m1 or m2 is 0
    """
    similarities = torch.cat([positives @ key, negatives @ key])[None]
    is_positive = torch.arange(len(similarities[0]), device=key.device)[None] < len(positives)
    return contrastive_rows(similarities, is_positive, ~is_positive)[0]


def contrastive_rows(similarities: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Paper Eq. 4 for many instances, each with its own positives and negatives.

    similarities: (n, Q) v.k of each instance with every embedding of its reference frame
    positives:    (n, Q) bool
    negatives:    (n, Q) bool
    returns:      (n,)   0 where an instance has no positive or no negative
    """
    # The double sum factorises into sum_n exp(v.k-) * sum_p exp(-v.k+): m1 + m2 terms instead
    # of m1 * m2, and softplus(logsumexp) cannot overflow.
    either = positives.any(1) & negatives.any(1)
    # An empty sum would be -inf, whose gradient is NaN: such rows get a harmless term instead
    # and leave through the last line, with gradient 0.
    rest = ~either[:, None]
    high = similarities.masked_fill(~(negatives | rest), -torch.inf).logsumexp(1)
    low = (-similarities).masked_fill(~(positives | rest), -torch.inf).logsumexp(1)
    return F.softplus(high + low) * either


def cosine_rows(cosines: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Auxiliary embedding loss of the released code (specification 3.3), for many instances.

    cosines:   (n, Q) cosine of each instance with every embedding of its reference frame
    positives: (n, Q) bool, pulled to 1
    negatives: (n, Q) bool, the sampled ones, pulled to 0
    returns:   (n,)   mean over both of (cosine - target)²; 0 where an instance has neither
    """
    counted = positives | negatives
    error = (cosines - positives.to(cosines.dtype)) ** 2 * counted
    count = counted.sum(1)
    return error.sum(1) / count.clamp(min=1)
