"""Optimal-transport assignment of object queries to true instances (paper Sec. 3.2).

The default makes the decisions of the released code (simOTA on queries, specification 3.1, 3.2);
AssignmentConfig names the alternatives. Costs are computed on the device for all layers and images
at once; the host decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy
import torch
from torch import Tensor

from idol.arrays import Bools, Ints
from idol.config import AssignmentConfig
from idol.config.training import FOCAL_ALPHA, FOCAL_GAMMA
from idol.masks.boxes import cxcywh_to_xyxy

Costs = npt.NDArray[np.float32] | npt.NDArray[np.float64]

# Penalties that order the queries: near this truth < near another truth < near no truth < taken.
OUT_OF_REACH = 100.0
BACKGROUND = 10_000.0
TAKEN = 100_000.0
EPSILON = 1e-8  # keeps the logarithm of a score of 0 finite


@dataclass(frozen=True, slots=True)
class Truths:
    """True instances in rows. The leading axes broadcast against those of the queries.

    labels: (..., G)    int64 class index
    boxes:  (..., G, 4) cxcywh in [0, 1]
    valid:  (..., G)    bool, False where the row holds no instance
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        shape, boxes, valid = (tuple(x.shape) for x in (self.labels, self.boxes, self.valid))
        if boxes != (*shape, 4):
            raise ValueError(
                "truth boxes must have shape (..., G, 4) beside labels (..., G), got "
                f"{boxes} beside {shape}"
            )
        if valid != shape:
            raise ValueError(f"valid must have the shape of labels {shape}, got {valid}")


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which truth every query is assigned to.

    truth: (..., Q) row of the truth; -1: the query is background
    best:  (..., G) the truth's lowest-cost query among those assigned to it; -1: not valid. With
           repair "released" two truths may name one query here; `truth` has only the lower row.
    """

    truth: Ints
    best: Ints

    @property
    def positive(self) -> Bools:
        """(..., Q) True where the query is assigned to a truth."""
        return np.asarray(self.truth >= 0)


@dataclass(frozen=True, slots=True)
class ContrastiveSamples:
    """Positives and negatives of the contrastive loss on the reference frame.

    positives: (..., G, Q) queries that show the truth. With positives "released" the rows are
               disjoint, except for truths that repair "released" gave the same query.
    negatives: (..., G, Q) queries that show something else, other truths included. With negatives
               "released" a query can be both: in the narrow assignment and not in the wide one.
    Rows that are not valid are False. Other rows have a positive, except with selection "iou" or
    with more truths than queries.
    """

    positives: Bools
    negatives: Bools


@torch.no_grad()
def cost_matrix(
    logits: Tensor, boxes: Tensor, truths: Truths, config: AssignmentConfig
) -> tuple[Tensor, Tensor]:
    """Cost and IoU of every query with every truth (specification 3.1).

    logits:  (..., Q, K) class logits
    boxes:   (..., Q, 4) cxcywh in [0, 1]
    returns: (..., Q, G) cost as AssignmentConfig.cost defines it: float32, or float64 with
                         "exact"; +inf where the truth is not valid
             (..., Q, G) float32 IoU; 0 where the truth is not valid
    """
    logits, boxes, truth_boxes = logits.float(), boxes.float(), truths.boxes.float()
    lead = np.broadcast_shapes(logits.shape[:-2], truths.labels.shape[:-1])
    shape = (*lead, logits.shape[-2], truths.labels.shape[-1])

    # Class cost at the truths' labels only: Q x G sigmoids instead of Q x K.
    columns = truths.labels.unsqueeze(-2).expand(shape)
    of_class = focal_class_cost(logits.expand(*lead, *logits.shape[-2:]).gather(-1, columns))

    iou, giou = iou_and_giou(boxes, truth_boxes)
    valid = truths.valid.unsqueeze(-2)
    if config.cost == "paper":
        class_weight, box_weight, giou_weight = config.paper_weights
        distance = (boxes.unsqueeze(-2) - truth_boxes.unsqueeze(-3)).abs().sum(-1)
        cost = class_weight * of_class + box_weight * distance - giou_weight * giou
    else:
        in_box, in_square = _centre_prior(boxes, truth_boxes, config.center_radius)
        foreground = ((in_box | in_square) & valid).any(-1, keepdim=True)
        # The additions are in the order of the released code: at 1e4 a float32 step is 1e-3, so
        # the order decides ties among queries that are far from every truth.
        cost = of_class + config.giou_weight * -giou
        if config.cost == "exact":
            cost = cost.double()
        cost = cost + OUT_OF_REACH * (~(in_box & in_square)).to(cost.dtype)
        cost = cost + BACKGROUND * (~foreground).to(cost.dtype)
    return cost.masked_fill(~valid, torch.inf).expand(shape), (iou * valid).expand(shape)


def assign_queries(
    logits: Tensor, boxes: Tensor, truths: Truths, config: AssignmentConfig
) -> Assignment:
    """Assign queries to truths, separately for each entry of the leading axes of logits (3.1).

    Arguments as of cost_matrix; give all decoder layers and images in one call.
    Raises:
        FloatingPointError: logits or boxes are not finite.
        ValueError: boxes do not fit logits.
    """
    cost, (k,), lead = _problem(logits, boxes, truths, config, config.candidates)
    num_truths, num_queries = cost.shape[1:]
    truth = np.full((len(cost), num_queries), -1)
    best = np.full((len(cost), num_truths), -1)
    if num_truths:
        matched = _dynamic_k(cost, k, config)
        truth = np.where(matched.any(1), matched.argmax(1), -1)
        # With more truths than queries, a truth without a query names its cheapest one.
        unmatched = ~matched.any(2, keepdims=True)
        cheapest = np.where(matched | unmatched, cost, np.inf).argmin(2)
        best = np.where(k > 0, cheapest, -1)
    return Assignment(
        truth=truth.reshape(*lead, num_queries).astype(np.int64),
        best=best.reshape(*lead, num_truths).astype(np.int64),
    )


def contrastive_samples(
    logits: Tensor, boxes: Tensor, truths: Truths, config: AssignmentConfig
) -> ContrastiveSamples:
    """Choose the contrastive positives and negatives on the reference frame (3.2).

    Released: positives are an assignment with `candidates`; negatives are the queries that are
    not in a second assignment with `negative_candidates`, made on the costs as the repair of the
    first one left them. AssignmentConfig.positives, .negatives and .selection name the others.

    Arguments as of cost_matrix: the last decoder layer's, with refined boxes. Raises: as
    assign_queries.
    """
    if config.selection == "iou":
        return _samples_by_iou(logits, boxes, truths, config)
    candidates = config.candidates, config.negative_candidates
    cost, (narrow, wide), lead = _problem(logits, boxes, truths, config, *candidates)
    # The paper's rules look at one truth at a time, so they come before a repair changes costs.
    beyond = ~_cheapest(cost, wide) if config.negatives == "paper" else None
    paper = config.positives == "paper"
    positives = _cheapest(cost, narrow) if paper else _dynamic_k(cost, narrow, config)
    # As m1 <= m2, `& ~positives` changes the paper's negatives only beside released positives.
    negatives = ~_dynamic_k(cost, wide, config) if beyond is None else beyond & ~positives
    negatives &= (narrow > 0)[..., None]
    shape = (*lead, *cost.shape[1:])
    return ContrastiveSamples(positives.reshape(shape), negatives.reshape(shape))


@torch.no_grad()
def _samples_by_iou(
    logits: Tensor, boxes: Tensor, truths: Truths, config: AssignmentConfig
) -> ContrastiveSamples:
    """Positive above iou_positive, negative below iou_negative, neither in between (A.2)."""
    _check_boxes(logits, boxes)
    iou, _ = iou_and_giou(boxes.float(), truths.boxes.float())
    host = np.ascontiguousarray(iou.cpu().numpy().swapaxes(-1, -2))
    valid = truths.valid.cpu().numpy()[..., None]
    _require_finite((np.isfinite(host) | ~valid).all(-1))
    return ContrastiveSamples(
        positives=(host > config.iou_positive) & valid,
        negatives=(host < config.iou_negative) & valid,
    )


def focal_class_cost(logits: Tensor) -> Tensor:
    """Focal loss of logits (...) if the query is of the class, less that if it is not: (...)."""
    p = logits.sigmoid()
    positive = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * -(p + EPSILON).log()
    negative = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * -(1 - p + EPSILON).log()
    return positive - negative


def iou_and_giou(boxes: Tensor, truth_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """IoU (of 0/0: 0) and generalised IoU, (..., Q, G) each.

    boxes: (..., Q, 4) and truth_boxes: (..., G, 4) cxcywh, any unit
    """
    a, b = cxcywh_to_xyxy(boxes).unsqueeze(-2), cxcywh_to_xyxy(truth_boxes).unsqueeze(-3)
    shared = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    sides = shared.clamp(min=0), a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2], hull.clamp(min=0)
    inter, area_a, area_b, area = (side[..., 0] * side[..., 1] for side in sides)
    union = area_a + area_b - inter
    iou = torch.where(union > 0, inter / union, torch.where(union <= 0, 0.0, torch.nan))
    return iou, iou - (area - union) / (area + 1e-7)


def _centre_prior(boxes: Tensor, truth_boxes: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """(..., Q, G) query centre strictly inside the truth's box; in the square at its centre."""
    cx, cy = boxes[..., 0].unsqueeze(-1), boxes[..., 1].unsqueeze(-1)
    x0, y0, x1, y1 = (v.unsqueeze(-2) for v in cxcywh_to_xyxy(truth_boxes).unbind(-1))
    in_box = (cx > x0) & (cx < x1) & (cy > y0) & (cy < y1)
    tx, ty = truth_boxes[..., 0].unsqueeze(-2), truth_boxes[..., 1].unsqueeze(-2)
    in_square = (cx > tx - radius) & (cx < tx + radius) & (cy > ty - radius) & (cy < ty + radius)
    return in_box, in_square


@torch.no_grad()
def _problem(
    logits: Tensor, boxes: Tensor, truths: Truths, config: AssignmentConfig, *candidates: int
) -> tuple[Costs, list[Ints], tuple[int, ...]]:
    """On the host: (N, G, Q) costs, free to be changed; for each of candidates (N, G) dynamic k =
    max(1, int(sum of this many largest IoUs)), 0 if not valid; the leading axes, flattened to N."""
    _check_boxes(logits, boxes)
    cost, iou = cost_matrix(logits, boxes, truths, config)
    *lead, num_queries, num_truths = cost.shape
    counts = (min(count, num_queries) for count in candidates)
    sums = [iou.topk(count, dim=-2).values.sum(-2, keepdim=True) for count in counts]
    valid = truths.valid.unsqueeze(-2).expand(*lead, 1, num_truths)
    # One copy: each copy waits until the device has finished all that was asked of it.
    rows = torch.cat([cost, *(row.to(cost.dtype) for row in (*sums, valid))], dim=-2)
    packed = rows.reshape(math.prod(lead), *rows.shape[-2:]).cpu().numpy()
    costs, *totals, real = np.split(packed, range(num_queries, packed.shape[1]), axis=1)
    host = np.ascontiguousarray(costs.swapaxes(1, 2))
    usable = real[:, 0] > 0
    _require_finite((np.isfinite(host).all(2) | ~usable).reshape(*lead, num_truths))
    k = [np.where(usable, np.maximum(t[:, 0].astype(np.int64), 1), 0) for t in totals]
    return host, k, tuple(lead)


def _require_finite(finite: Bools) -> None:
    """finite: (..., G) whether all costs of a truth are."""
    if not finite.all():
        row = tuple(int(i) for i in np.argwhere(~finite)[0][:-1])
        raise FloatingPointError(
            f"class logits and boxes must be finite to be assigned; those of row {row} of the "
            f"leading axes {finite.shape[:-1]} are not (or its truth's box is not). Has training "
            "diverged? Lower train.learning_rate or train.clip_norm."
        )


def _check_boxes(logits: Tensor, boxes: Tensor) -> None:
    if boxes.shape != (*logits.shape[:-1], 4):
        raise ValueError(
            "boxes must have shape (..., Q, 4) beside logits (..., Q, K), got "
            f"{tuple(boxes.shape)} beside {tuple(logits.shape)}"
        )


def _cheapest(cost: Costs, k: Ints) -> Bools:
    """(N, G, Q) True at the k (N, G) cheapest queries of every truth, cost (N, G, Q)."""
    order = np.argsort(cost, axis=2, kind="stable")
    chosen = np.zeros(cost.shape, bool)
    np.put_along_axis(chosen, order, np.arange(cost.shape[2]) < k[..., None], axis=2)
    return chosen


def _dynamic_k(cost: Costs, k: Ints, config: AssignmentConfig) -> Bools:
    """Match the k (N, G) cheapest queries to each truth, resolve conflicts, repair: (N, G, Q).

    Repair "released" changes cost (N, G, Q) in place.
    """
    matched = _cheapest(cost, k)
    contested = matched.sum(1) > 1
    _resolve(cost, matched, contested)
    for n in np.flatnonzero(((k > 0) & ~matched.any(2)).any(1)):
        if config.repair == "exact":
            _repair_exactly(cost[n], matched[n], k[n] > 0)
        else:
            _repair(cost[n], matched[n], k[n] > 0, contested[n])
    return matched


def _resolve(cost: Costs, matched: Bools, contested: Bools) -> None:
    """Give every contested (..., Q) query to the truth of least cost, in place, even to one that
    did not choose it; cost, matched: (..., G, Q)."""
    if contested.any():
        winner = cost.argmin(-2)[..., None, :] == np.arange(cost.shape[-2])[:, None]
        np.copyto(matched, winner, where=contested[..., None, :])


def _repair(cost: Costs, matched: Bools, real: Bools, contested: Bools) -> None:
    """Find a query for every valid truth (G,) of one image that lost all of its own, in place.

    The released code resolves only the *old* conflicts, contested (Q,), again: two truths without
    a query that choose the same one both keep it.
    """
    for _ in range(len(real) + cost.shape[1]):
        (missing,) = np.nonzero(real & ~matched.any(1))
        if len(missing) == 0:
            return
        cost[:, matched.any(0)] += cost.dtype.type(TAKEN)
        matched[missing, cost[missing].argmin(1)] = True
        if (matched.sum(0) > 1).any():
            _resolve(cost, matched, contested)
    # Reached only with more truths than queries, where the released loop would not end.


def _repair_exactly(cost: Costs, matched: Bools, real: Bools) -> None:
    """Assign the free queries of one image to the valid truths (G,) without any, in place."""
    (missing,) = np.nonzero(real & ~matched.any(1))
    if len(missing) > np.count_nonzero(~matched.any(0)):
        # Too few free queries: every truth keeps its cheapest query and frees the others.
        (holders,) = np.nonzero(matched.any(1))
        kept = np.where(matched, cost, np.inf).argmin(1)[holders]
        matched[:] = False
        matched[holders, kept] = True
    (free,) = np.nonzero(~matched.any(0))
    rows, columns = scipy.optimize.linear_sum_assignment(cost[np.ix_(missing, free)])
    matched[missing[rows], free[columns]] = True
