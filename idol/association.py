"""How likely each detection continues each instance, and who gets whom (Eq. 6, 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idol.config import TrackerConfig
from idol.memory_bank import MemoryBank

__all__ = ["assign", "similarity"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Similarity = npt.NDArray[np.floating[Any]]


def similarity(
    embeddings: Floats,
    boxes: Floats,
    scores: Floats,
    labels: Ints,
    memory: MemoryBank,
    clock: int,
    config: TrackerConfig,
) -> tuple[Similarity, Similarity]:
    """f(i, j) of detection i and instance j, and the value it has to exceed.

    embeddings: (n, C)
    boxes:      (n, 4) xyxy
    scores:     (n,)
    labels:     (n,)
    memory:     of M instances
    clock:      of this frame
    returns:    (n, M) f, -inf where a gate forbids; (n, 1) or (1, 1) the bar
    Errors: ValueError where products of embeddings overflow
    """
    bar: Similarity | None = None
    if config.similarity == "cosine":
        found: Similarity = _cosine(embeddings, memory.embeddings)
    else:
        products = _products(embeddings, memory.embeddings)
        if config.similarity == "released":
            likely = products.softmax(dim=1)
            likely += products.softmax(dim=0)
            likely /= 2
            found = likely.numpy()
        elif config.similarity == "paper":
            found = _paper(products, clock - memory.born)
        else:
            found, bar = _multi_cue(products, boxes, scores, labels, memory, config)
    if config.position_weight > 0:
        found = found + np.float32(config.position_weight) * _proximity(
            boxes, memory.boxes + memory.motion, clock - memory.last_seen
        )
    if config.min_cosine > -1.0:
        alike = _cosine(embeddings, memory.embeddings) >= np.float32(config.min_cosine)
        found = np.where(alike, found, -np.inf)
    if config.same_class:
        found = np.where(labels[:, None] == memory.labels, found, -np.inf)
    if bar is None:
        # A threshold is rounded like the values it meets.
        bar = np.full((1, 1), config.match_threshold, found.dtype)
    return found, bar


def assign(found: Similarity, bar: Similarity, existence: Floats, config: TrackerConfig) -> Ints:
    """The memory row of every detection, each row at most once.

    found, bar: as similarity returns them
    existence:  (M,) frames in which each instance was seen
    returns:    (n,) rows of the memory, -1 for none
    """
    ranking = found
    if config.similarity == "released" and config.frame_weight:
        # The released code multiplies candidates by their existence time, and the others by the
        # candidates' mean, where several pass. The largest product is always a candidate's, so
        # ranking the candidates is the same, and with a single one the factor changes nothing.
        ranking = found * existence.astype(found.dtype, copy=False)
    ranking = np.where(found > bar, ranking, -np.inf)
    if config.assignment == "hungarian":
        return _hungarian(ranking, bar)
    best = ranking.argmax(axis=1)
    rows = np.arange(len(best))
    matches: Ints = np.where(ranking[rows, best] > -np.inf, best, -1)
    passing = np.flatnonzero(matches >= 0)
    if len(set(matches[passing].tolist())) == len(passing):
        return matches  # nobody wants what another wants: whatever the order, each gets it
    matches[:] = -1
    if config.assignment == "argmax":
        # Of the detections that want one instance the most similar has it; a tie goes to the
        # higher score, which comes first.
        order = np.argsort(-found[passing, best[passing]], kind="stable")
        wanted, first = np.unique(best[passing][order], return_index=True)
        matches[passing[order[first]]] = wanted
        return matches
    taken: set[int] = set()
    for i, j in zip(passing.tolist(), best[passing].tolist(), strict=True):
        if j in taken:  # its best column has gone to a higher score: look again
            j = int(ranking[i].argmax())
            if not ranking[i, j] > -np.inf:
                continue
        matches[i] = j
        taken.add(j)
        ranking[:, j] = -np.inf
    return matches


def _hungarian(ranking: Similarity, bar: Similarity) -> Ints:
    from scipy.optimize import linear_sum_assignment

    # Leaving a detection unmatched costs nothing, a pair below the bar is never worth it.
    gain = np.where(ranking > -np.inf, ranking - bar, 0.0)
    matches = np.full(len(gain), -1)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    real = ranking[rows, columns] > -np.inf
    matches[rows[real]] = columns[real]
    return matches


def _products(embeddings: Floats, memory: Floats) -> Tensor:
    """d_i · ê_j, (n, C), (M, C) → (n, M)."""
    # torch, not numpy, for product and softmax: the released decision can hang on the last bit
    # (with one instance in memory f = (1 + p) / 2 passes 0.5 only if 1 + p rounds up).
    products = torch.mm(torch.from_numpy(embeddings), torch.from_numpy(memory).T)
    if not np.isfinite(products.numpy()).all():
        raise ValueError(
            "products of embeddings overflow float32: their largest entry is "
            f"{max(np.abs(embeddings).max(), np.abs(memory).max()):.3g}. "
            "Check the checkpoint that made them."
        )
    return products


def _paper(products: Tensor, existence: Ints) -> Similarity:
    """Eq. 6: σ_j, the frames since instance j entered the memory, inside the softmax over memory.

    products:  (n, M) ê_j · d_i
    existence: (M,)   σ_j
    """
    exact = products.double()
    sigma = torch.from_numpy(existence).double()
    # (e^F + σ) / Σ(e^F + σ), both sides divided by e^s. s = max(F, 0) keeps every exponent at or
    # below 0, and one of the terms at 1 or above: nothing overflows, nothing vanishes.
    scale = exact.amax(dim=1, keepdim=True).clamp(min=0)
    terms = (exact - scale).exp() + sigma * (-scale).exp()
    over_memory = terms / terms.sum(dim=1, keepdim=True)
    likely: Similarity = ((over_memory + exact.softmax(dim=0)) / 2).numpy()
    return likely


def _multi_cue(
    products: Tensor,
    boxes: Floats,
    scores: Floats,
    labels: Ints,
    memory: MemoryBank,
    config: TrackerConfig,
) -> tuple[Similarity, Similarity]:
    """MaskTrack R-CNN (ICCV 2019), Eq. 1 and 3: log p + α log s + β IoU + γ [same class].

    p is the softmax of the products over the M instances and "new", whose logit is 0 and whose
    class always agrees; so the bar is the value of "new".

    products: (n, M)
    returns:  (n, M) values, (n, 1) those of "new"
    """
    logits = np.concatenate([np.zeros((len(boxes), 1)), products.numpy()], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    values = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    # It is the same for all instances, and so decides between detections alone. A score of 0
    # must not turn into -inf, which means forbidden.
    certain = np.log(np.maximum(scores.astype(np.float64), np.finfo(np.float32).tiny))
    values += config.cue_score * certain[:, None]
    values[:, 1:] += config.cue_overlap * _box_iou(boxes, memory.boxes)
    values[:, 1:] += config.cue_class * (labels[:, None] == memory.labels)
    values[:, 0] += config.cue_class
    return values[:, 1:], values[:, :1]


def _box_iou(boxes: Floats, others: Floats) -> npt.NDArray[np.float64]:
    """(n, 4), (M, 4) xyxy → (n, M); 0 where both are empty."""
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    shared = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.prod(np.maximum(shared, 0), axis=-1)
    areas = (np.prod(np.maximum(x[..., 2:] - x[..., :2], 0), axis=-1) for x in (a, b))
    union = sum(areas) - inter
    iou: npt.NDArray[np.float64] = inter / np.where(union > 0, union, 1)
    return iou


def _cosine(a: Floats, b: Floats) -> Floats:
    """(n, C), (M, C) → (n, M); 0 with an embedding of length 0."""
    exact_a, exact_b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(exact_a, axis=1)[:, None] * np.linalg.norm(exact_b, axis=1)[None]
    cosine: Floats = (exact_a @ exact_b.T / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return cosine


def _proximity(boxes: Floats, expected: Floats, absent: Ints) -> Floats:
    """How near each detection is to where each instance is expected: 1 at the place, towards 0.

    boxes:      (n, 4) xyxy
    expected:   (M, 4) xyxy, the last box moved on as it moved last
    absent:     (M,) frames since the instance was seen, 1 for the last frame
    returns:    (n, M) exp(-d) / absent, d in units of the mean side of the two boxes
    """
    centre, there = (boxes[:, :2] + boxes[:, 2:]) / 2, (expected[:, :2] + expected[:, 2:]) / 2
    side, other = (
        np.sqrt(np.prod(np.maximum(b[:, 2:] - b[:, :2], 1.0), axis=1)) for b in (boxes, expected)
    )
    distance = np.linalg.norm(centre[:, None] - there[None], axis=-1)
    near: Floats = np.exp(-2 * distance / (side[:, None] + other[None])) / absent
    return near.astype(np.float32)
