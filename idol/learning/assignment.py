"""Optimal-transport assignment: which object queries answer for which truth (paper Sec. 3.2).

By default the released code's simOTA on queries, decision for decision (specification 3.1, 3.2);
AssignmentConfig names what differs from it in the paper, in the paper's baselines, and in ours.
Costs are made on the device for all layers and images at once and cross to the host in one copy;
what follows is a handful of small-array decisions that would otherwise be one device sync each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idol.arrays import Bools, Ints
from idol.config import AssignmentConfig
from idol.masks.boxes import cxcywh_to_xyxy

Costs = npt.NDArray[np.float32] | npt.NDArray[np.float64]

# Numbers of the algorithm rather than settings: they only order costs into classes (a query
# within reach of this truth < of another truth < of none < taken already).
OUT_OF_REACH = 100.0
BACKGROUND = 10_000.0
TAKEN = 100_000.0
FOCAL_ALPHA, FOCAL_GAMMA, EPSILON = 0.25, 2.0, 1e-8


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which truth every object query answers for. Leading axes are the caller's.

    truth: (..., Q) row of the truth, -1 where the query is background
    best:  (..., G) the truth's lowest-cost query among those matched to it; -1 where the truth
           is not valid. With repair "released" two truths that fight for the same query both
           name it here, though only the lower row has it in `truth`.
    """

    truth: Ints
    best: Ints

    @property
    def positive(self) -> Bools:
        """(..., Q) True where the query answers for some truth."""
        return np.asarray(self.truth >= 0)


@dataclass(frozen=True, slots=True)
class Selection:
    """Positives and negatives of the contrastive loss on the reference frame.

    positives: (..., G, Q) queries that show the truth; with positives "released" rows are
               disjoint, except that truths which repair "released" sent to one query share it
    negatives: (..., G, Q) queries that show something else, other truths included. With negatives
               "released" a query can be both: won in the narrow assignment, lost in the wide one
    Rows of truths that are not valid are False throughout. A valid truth has no positive only
    with selection "iou", or where there are more truths than queries.
    """

    positives: Bools
    negatives: Bools


@torch.no_grad()
def cost_matrix(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    truth_boxes: Tensor,
    config: AssignmentConfig,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cost and IoU of every query with every truth (specification 3.1).

    logits:      (..., Q, K) class logits
    boxes:       (..., Q, 4) cxcywh in [0, 1]
    labels:      (..., G)    int64; leading axes broadcast against those of logits
    truth_boxes: (..., G, 4) cxcywh in [0, 1]
    valid:       (..., G)    bool, False where the row is no truth; None: all are
    returns:     (..., Q, G) cost, float32, or float64 with cost "exact": focal class cost
                             - giou_weight * GIoU + 100 unless the query's centre lies in the
                             truth's box and in the square around its centre + 10000 if it lies in
                             none of any truth; with cost "paper" instead the weighted sum of
                             focal class cost, L1 distance and -GIoU (Sec. 3.1);
                             +inf in rows that are no truth
                 (..., Q, G) float32 IoU, 0 there
    """
    logits, boxes, truth_boxes = logits.float(), boxes.float(), truth_boxes.float()
    lead = np.broadcast_shapes(logits.shape[:-2], labels.shape[:-1])
    num_queries, num_truths = logits.shape[-2], labels.shape[-1]
    shape = (*lead, num_queries, num_truths)

    # Class cost only at the truths' labels: Q x G sigmoids instead of Q x K.
    columns = labels.unsqueeze(-2).expand(shape)
    p = logits.expand(*lead, *logits.shape[-2:]).gather(-1, columns).sigmoid()
    positive = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * -(p + EPSILON).log()
    negative = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * -(1 - p + EPSILON).log()

    iou, giou = _overlaps(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth_boxes))
    here = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    here = here.unsqueeze(-2)
    if config.cost == "paper":
        class_weight, box_weight, giou_weight = config.paper_weights
        distance = (boxes.unsqueeze(-2) - truth_boxes.unsqueeze(-3)).abs().sum(-1)
        cost = class_weight * (positive - negative) + box_weight * distance - giou_weight * giou
    else:
        in_box, in_square = _reach(boxes, truth_boxes, config.center_radius)
        in_box, in_square = in_box & here, in_square & here
        foreground = (in_box | in_square).any(-1, keepdim=True)
        # The order of the additions is the released code's: at 1e4 a float32 step is 1e-3, so the
        # order decides ties among queries that are far from everything.
        cost = positive - negative + config.giou_weight * -giou
        if config.cost == "exact":
            cost = cost.double()
        cost = cost + OUT_OF_REACH * (~(in_box & in_square)).to(cost.dtype)
        cost = cost + BACKGROUND * (~foreground).to(cost.dtype)
    return cost.masked_fill(~here, torch.inf).expand(shape), (iou * here).expand(shape)


def assign(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    truth_boxes: Tensor,
    config: AssignmentConfig,
    valid: Tensor | None = None,
) -> Assignment:
    """Assign queries to truths, each row of the leading axes on its own (specification 3.1).

    Arguments as of cost_matrix; give all decoder layers and images in one call.
    returns: Assignment with the leading axes of logits
    errors:  FloatingPointError naming the row where logits or boxes are not finite
    """
    cost, (k,) = _problem(
        logits, boxes, labels, truth_boxes, config, valid, candidates=(config.candidates,)
    )
    lead, num_truths = cost.shape[:-2], cost.shape[-2]
    if num_truths == 0:
        return Assignment(
            truth=np.full((*lead, cost.shape[-1]), -1), best=np.empty((*lead, 0), np.int64)
        )
    flat = cost.reshape(-1, *cost.shape[-2:])
    matched = _dynamic_k(flat, k.reshape(-1, num_truths), config)
    truth = np.where(matched.any(1), matched.argmax(1), -1)
    # A truth that got no query at all (more truths than queries) borrows its cheapest one.
    lost = ~matched.any(2, keepdims=True)
    best = np.where(matched | lost, flat, np.inf).argmin(2)
    best = np.where(k.reshape(-1, num_truths) > 0, best, -1)
    return Assignment(
        truth=truth.reshape(*lead, -1).astype(np.int64),
        best=best.reshape(*lead, -1).astype(np.int64),
    )


def select(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    truth_boxes: Tensor,
    config: AssignmentConfig,
    valid: Tensor | None = None,
) -> Selection:
    """Choose the contrastive positives and negatives on the reference frame (specification 3.2).

    Arguments as of cost_matrix, of the reference frame: last decoder layer, refined boxes,
    truths visible there. As released, positives are an assignment with `candidates`; negatives
    are what a second, wider one with `negative_candidates` leaves over, made on the costs as the
    first one's repair left them. AssignmentConfig.positives, .negatives and .selection name the
    paper's text and its IoU baseline.

    errors: FloatingPointError naming the row where logits or boxes are not finite
    """
    if config.selection == "iou":
        return _select_by_iou(logits, boxes, labels, truth_boxes, config, valid)
    cost, (k_narrow, k_wide) = _problem(
        logits,
        boxes,
        labels,
        truth_boxes,
        config,
        valid,
        candidates=(config.candidates, config.negative_candidates),
    )
    if cost.shape[-2] == 0:
        return Selection(positives=np.zeros(cost.shape, bool), negatives=np.zeros(cost.shape, bool))
    flat = cost.reshape(-1, *cost.shape[-2:])
    k_narrow, k_wide = (k.reshape(len(flat), -1) for k in (k_narrow, k_wide))
    real = (k_narrow > 0)[..., None]
    # The paper's choices look at each truth by itself; before any repair changes the costs.
    beyond = ~_cheapest(flat, k_wide) if config.negatives == "paper" else None
    if config.positives == "paper":
        positives = _cheapest(flat, k_narrow)
    else:
        positives = _dynamic_k(flat, k_narrow, config)
    # m1 <= m2: this takes nothing from the paper's negatives unless the positives are released.
    negatives = ~_dynamic_k(flat, k_wide, config) if beyond is None else beyond & ~positives
    return Selection(
        positives=positives.reshape(cost.shape), negatives=(real & negatives).reshape(cost.shape)
    )


@torch.no_grad()
def _select_by_iou(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    truth_boxes: Tensor,
    config: AssignmentConfig,
    valid: Tensor | None,
) -> Selection:
    """IoU above iou_positive: positive; below iou_negative: negative; neither between (A.2)."""
    _check_shapes(logits, boxes, labels, truth_boxes, valid)
    iou, _ = _overlaps(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(truth_boxes.float()))
    here = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    here = here.unsqueeze(-2)
    facts = torch.stack(
        [(iou > config.iou_positive) & here, (iou < config.iou_negative) & here, iou.isnan() & here]
    )
    positives, negatives, unknown = np.ascontiguousarray(facts.cpu().numpy().swapaxes(-1, -2))
    _require_finite(~unknown.any(-1))
    return Selection(positives=positives, negatives=negatives)


def _overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of (..., Q, 4) with (..., G, 4) xyxy, sharing the intersections.

    A truth without area (0/0) overlaps nothing.
    """
    a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(
        min=0
    )
    inter = overlap[..., 0] * overlap[..., 1]
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    union = size_a[..., 0] * size_a[..., 1] + size_b[..., 0] * size_b[..., 1] - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(
        min=0
    )
    area = hull[..., 0] * hull[..., 1]
    iou = torch.where(union > 0, inter / union, torch.where(union <= 0, 0.0, torch.nan))
    return iou, iou - (area - union) / (area + 1e-7)


def _reach(boxes: Tensor, truth_boxes: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """(..., Q, G) query centre strictly inside the truth's box; in the square at its centre."""
    cx, cy = (boxes[..., i].unsqueeze(-1) for i in range(2))
    x0, y0, x1, y1 = (v.unsqueeze(-2) for v in cxcywh_to_xyxy(truth_boxes).unbind(-1))
    in_box = (cx > x0) & (cx < x1) & (cy > y0) & (cy < y1)
    tx, ty = (truth_boxes[..., i].unsqueeze(-2) for i in range(2))
    in_square = (cx > tx - radius) & (cx < tx + radius) & (cy > ty - radius) & (cy < ty + radius)
    return in_box, in_square


@torch.no_grad()
def _problem(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    truth_boxes: Tensor,
    config: AssignmentConfig,
    valid: Tensor | None,
    candidates: tuple[int, ...],
) -> tuple[Costs, list[Ints]]:
    """Costs (..., G, Q) on the host, ours to change, and one dynamic k (..., G) per candidates.

    k = max(1, int(sum of that many largest IoUs)); 0 where the row is no truth.
    """
    _check_shapes(logits, boxes, labels, truth_boxes, valid)
    cost, iou = cost_matrix(logits, boxes, labels, truth_boxes, config, valid)
    if cost.shape[-1] == 0:
        empty = np.empty((*cost.shape[:-2], 0), np.int64)
        return np.empty((*cost.shape[:-2], 0, cost.shape[-2]), np.float32), [empty] * len(
            candidates
        )
    sums = [
        iou.topk(min(c, iou.shape[-2]), dim=-2).values.sum(-2, keepdim=True) for c in candidates
    ]
    flags = torch.ones_like(labels) if valid is None else valid
    flags = flags.to(cost.dtype).unsqueeze(-2).expand(*cost.shape[:-2], 1, cost.shape[-1])
    # One copy, for each is a wait for everything that the device still has to do.
    packed = torch.cat([cost, *(s.to(cost.dtype) for s in sums), flags], dim=-2).cpu().numpy()
    num_queries = cost.shape[-2]
    host = np.ascontiguousarray(packed[..., :num_queries, :].swapaxes(-1, -2))
    real = packed[..., -1, :] > 0
    _require_finite(np.isfinite(host).all(-1) | ~real)
    ks = [
        np.where(real, np.maximum(packed[..., num_queries + i, :].astype(np.int64), 1), 0)
        for i in range(len(candidates))
    ]
    return host, ks


def _require_finite(finite: Bools) -> None:
    """finite: (..., G), of every truth with all queries."""
    if not finite.all():
        row = tuple(int(i) for i in np.argwhere(~finite)[0][:-1])
        raise FloatingPointError(
            f"class logits and boxes must be finite to be assigned; those of row {row} of the "
            f"leading axes {finite.shape[:-1]} are not (or its truth's box is not). Has training "
            "diverged? Lower train.learning_rate or train.clip_norm."
        )


def _check_shapes(
    logits: Tensor, boxes: Tensor, labels: Tensor, truth_boxes: Tensor, valid: Tensor | None
) -> None:
    if boxes.shape != (*logits.shape[:-1], 4):
        raise ValueError(
            "boxes must have shape (..., Q, 4) beside logits (..., Q, K), got "
            f"{tuple(boxes.shape)} beside {tuple(logits.shape)}"
        )
    if truth_boxes.shape != (*labels.shape, 4):
        raise ValueError(
            "truth_boxes must have shape (..., G, 4) beside labels (..., G), got "
            f"{tuple(truth_boxes.shape)} beside {tuple(labels.shape)}"
        )
    if valid is not None and valid.shape != labels.shape:
        raise ValueError(
            f"valid must have the shape of labels {tuple(labels.shape)}, got {tuple(valid.shape)}"
        )


def _cheapest(cost: Costs, k: Ints) -> Bools:
    """(N, G, Q) True at the k (N, G) cheapest queries of every truth, cost (N, G, Q)."""
    order = np.argsort(cost, axis=2, kind="stable")
    chosen = np.zeros(cost.shape, bool)
    np.put_along_axis(chosen, order, np.arange(cost.shape[2]) < k[..., None], axis=2)
    return chosen


def _dynamic_k(cost: Costs, k: Ints, config: AssignmentConfig) -> Bools:
    """Match the k cheapest queries to each truth, then settle conflicts and repair.

    cost:    (N, G, Q), +inf for rows that are no truth; repair "released" changes it in place
    k:       (N, G)    queries wanted; 0 for rows that are no truth
    returns: (N, G, Q) bool
    """
    matched = _cheapest(cost, k)
    contested = matched.sum(1) > 1
    _settle(cost, matched, contested)
    for n in np.flatnonzero(((k > 0) & ~matched.any(2)).any(1)):
        if config.repair == "exact":
            _repair_exactly(cost[n], matched[n], k[n] > 0)
        else:
            _repair(cost[n], matched[n], k[n] > 0, contested[n])
    return matched


def _settle(cost: Costs, matched: Bools, contested: Bools) -> None:
    """Give every contested query to the truth of least cost, be it one that claimed it or not.

    cost, matched: (..., G, Q); contested: (..., Q). Changes matched in place.
    """
    winner = cost.argmin(-2)[..., None, :] == np.arange(cost.shape[-2])[:, None]
    np.copyto(matched, winner, where=contested[..., None, :])


def _repair(cost: Costs, matched: Bools, real: Bools, contested: Bools) -> None:
    """Find a query for every truth of one image that lost all of its own. Changes in place.

    cost, matched: (G, Q); real: (G,) rows that are truths; contested: (Q,) the conflicts of the
    first pass. The released code settles again on that *old* set: two truths without a query
    that choose the same one both keep it.
    """
    for _ in range(len(real) + cost.shape[1]):
        (missing,) = np.nonzero(real & ~matched.any(1))
        if len(missing) == 0:
            return
        cost[:, matched.any(0)] += cost.dtype.type(TAKEN)
        matched[missing, cost[missing].argmin(1)] = True
        if (matched.sum(0) > 1).any():
            _settle(cost, matched, contested)
    # Only with more truths than queries: somebody stays without one, and the released loop
    # would not end.


def _repair_exactly(cost: Costs, matched: Bools, real: Bools) -> None:
    """Deal the free queries of one image out to the truths without any. Changes matched in place.

    cost, matched: (G, Q), no query matched to two truths; real: (G,) rows that are truths
    """
    from scipy.optimize import linear_sum_assignment  # 0.3 s to import, and rarely needed

    (missing,) = np.nonzero(real & ~matched.any(1))
    if len(missing) > np.count_nonzero(~matched.any(0)):
        # Not enough of them: every truth keeps its cheapest query and hands the others back.
        (holders,) = np.nonzero(matched.any(1))
        kept = np.where(matched, cost, np.inf).argmin(1)[holders]
        matched[:] = False
        matched[holders, kept] = True
    (free,) = np.nonzero(~matched.any(0))
    rows, columns = linear_sum_assignment(cost[np.ix_(missing, free)])
    matched[missing[rows], free[columns]] = True
