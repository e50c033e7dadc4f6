"""How likely each detection continues each remembered instance, and the assignment (Eq. 6, 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from idol.arrays import HAS_TORCH, Floats, Floats32, Ints
from idol.config import TrackerConfig
from idol.tracker.memory_bank import FrameArrays, MemoryBank

Similarity = npt.NDArray[np.floating[Any]]


def similarity(
    now: FrameArrays, memory: MemoryBank, clock: int, config: TrackerConfig
) -> tuple[Similarity, Similarity]:
    """f(i, j) of detection i and instance j, and the threshold that it has to exceed.

    now:     n detections
    memory:  of M instances
    clock:   number of this frame
    returns: (n, M) f, -inf where an option forbids the match; (n, 1) or (1, 1) the threshold
    Raises: ValueError: products of embeddings overflow float32.
    """
    embeddings = now.embeddings
    bar: Similarity | None = None
    if config.similarity == "cosine":
        known = [memory.embeddings, memory.newest] if config.newest_too else [memory.embeddings]
        found: Similarity = np.maximum.reduce(_cosines(embeddings, *known))
    elif config.similarity == "released":
        found = _bi_softmax(_products(embeddings, memory.embeddings))
    elif config.similarity == "paper":
        found = _paper(_products(embeddings, memory.embeddings), clock - memory.born)
    else:
        found, bar = _multi_cue(_products(embeddings, memory.embeddings), now, memory, config)
    if config.softmax_weight > 0:
        relative = _bi_softmax(_products(embeddings, memory.embeddings))
        found = found + np.float32(config.softmax_weight) * relative
    if config.position_weight > 0:
        found = found + np.float32(config.position_weight) * _proximity(
            now.boxes, memory.boxes + memory.motion, clock - memory.last_seen, config.size_weight
        )
    if config.class_weight > 0:
        (agreement,) = _cosines(now.class_scores, memory.class_scores)
        found = found - np.float32(config.class_weight) * (1 - agreement)
    if config.min_cosine > -1.0:
        (cosine,) = _cosines(embeddings, memory.embeddings)
        found = np.where(cosine >= np.float32(config.min_cosine), found, -np.inf)
    if config.same_class:
        found = np.where(now.labels[:, None] == memory.labels, found, -np.inf)
    if bar is None:
        # The threshold is rounded to the precision of the values that it is compared with.
        bar = np.array([[config.match_threshold]], found.dtype)
    return found, bar


def assign_identities(
    found: Similarity, bar: Similarity, existence: Floats32, config: TrackerConfig
) -> Ints:
    """The memory row of every detection, each row at most once.

    found, bar: as similarity returns them
    existence:  (M,) frames in which each instance was seen
    returns:    (n,) rows of the memory, -1 for none
    """
    ranking = found
    passing = found > bar
    if config.similarity == "released" and config.frame_weight:
        # The released code multiplies the f of instances that do not pass by the mean existence
        # time of those that do. The largest product is always of one that passes.
        ranking = found * existence.astype(found.dtype, copy=False)
    ranking = np.where(passing, ranking, -np.inf)
    if config.assignment == "hungarian":
        return _hungarian(ranking, bar)
    best = ranking.argmax(axis=1)
    matches: Ints = np.where(passing.any(axis=1), best, -1)
    wanted = [j for j in matches.tolist() if j >= 0]
    if len(set(wanted)) == len(wanted):
        return matches  # no two detections prefer the same instance: the order does not matter
    rows = (matches >= 0).nonzero()[0]
    matches.fill(-1)
    if config.assignment == "argmax":
        # Of the detections that prefer the same instance, the most similar gets it; in a tie, the
        # one of higher score, which comes first.
        order = np.argsort(-found[rows, best[rows]], kind="stable")
        served, first = np.unique(best[rows][order], return_index=True)
        matches[rows[order[first]]] = served
        return matches
    taken: set[int] = set()
    for i, j in zip(rows.tolist(), wanted, strict=True):
        if j in taken:  # by a detection of higher score: try the next best instance
            j = int(ranking[i].argmax())
            if not ranking[i, j] > -np.inf:
                continue
        matches[i] = j
        taken.add(j)
        ranking[:, j] = -np.inf
    return matches


def _hungarian(ranking: Similarity, bar: Similarity) -> Ints:
    # A pair gains what it exceeds the threshold by; no match gains 0, as do forbidden pairs.
    gain = np.where(ranking > -np.inf, ranking - bar, 0.0)
    matches = np.full(len(gain), -1)
    rows, columns = scipy.optimize.linear_sum_assignment(gain, maximize=True)
    real = ranking[rows, columns] > -np.inf
    matches[rows[real]] = columns[real]
    return matches


def _products(embeddings: Floats32, memory: Floats32) -> Floats32:
    """d_i · ê_j, (n, C), (M, C) → (n, M)."""
    products: Floats32 = _matmul(embeddings, memory)
    finite = np.isfinite(products)
    if np.count_nonzero(finite) < finite.size:
        raise ValueError(
            "products of embeddings overflow float32: their largest entry is "
            f"{max(np.abs(embeddings).max(), np.abs(memory).max()):.3g}. "
            "Check the checkpoint that made them."
        )
    return products


def _matmul(a: Similarity, b: Similarity) -> Any:
    """(n, C), (M, C) of one type → (n, M)."""
    # torch, not numpy, for products and softmax: a released decision can depend on the last bit
    # (with one instance in memory, f = (1 + p) / 2 passes 0.5 only if 1 + p rounds up), and the
    # caller can limit torch's threads, but not those of numpy's BLAS. Without torch that bit may
    # differ.
    if not HAS_TORCH:
        return a @ b.T
    import torch

    return torch.mm(torch.from_numpy(a), torch.from_numpy(b).T).numpy()


def _softmax(a: Similarity, axis: int) -> Any:
    if not HAS_TORCH:
        return scipy.special.softmax(a, axis=axis)
    import torch

    return torch.from_numpy(a).softmax(dim=axis).numpy()


def _paper(products: Floats32, existence: Ints) -> Similarity:
    """Eq. 6: products (n, M); existence (M,) is σ_j, the frames since j entered the memory."""
    exact = products.astype(np.float64)
    # (e^F + σ) / Σ(e^F + σ), both sides divided by e^s with s = max(F, 0): all exponents are <= 0
    # and one term is >= 1, so there is neither overflow nor a sum of 0.
    scale = np.maximum(exact.max(axis=1, keepdims=True), 0)
    terms = np.exp(exact - scale) + existence * np.exp(-scale)
    over_memory = terms / terms.sum(axis=1, keepdims=True)
    likely: Similarity = (over_memory + _softmax(exact, 0)) / 2
    return likely


def _bi_softmax(products: Floats32) -> Floats32:
    """Mean of the softmax over memory and the softmax over detections, (n, M) → (n, M)."""
    likely: Floats32 = _softmax(products, 1)
    likely += _softmax(products, 0)
    likely /= np.float32(2)
    return likely


def _multi_cue(
    products: Floats32, now: FrameArrays, memory: MemoryBank, config: TrackerConfig
) -> tuple[Similarity, Similarity]:
    """MaskTrack R-CNN (ICCV 2019), Eq. 1 and 3: log p + α log s + β IoU + γ [same class].

    p is the softmax of the products (n, M) over the M instances and "new", whose logit is 0 and
    whose class always agrees. The threshold is the value of "new": (n, M) and (n, 1).
    """
    logits = np.concatenate([np.zeros((len(now), 1)), products], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    values = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    # The same for all instances: it decides between detections only. A score of 0 must not give
    # -inf, which means forbidden.
    certain = np.log(np.maximum(now.scores.astype(np.float64), np.finfo(np.float32).tiny))
    values += config.cue_score * certain[:, None]
    values[:, 1:] += config.cue_overlap * _box_iou(now.boxes, memory.boxes)
    values[:, 1:] += config.cue_class * (now.labels[:, None] == memory.labels)
    values[:, 0] += config.cue_class
    return values[:, 1:], values[:, :1]


def _box_iou(boxes: Floats32, others: Floats32) -> Floats:
    """(n, 4), (M, 4) xyxy → (n, M); 0 where both are empty."""
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    shared = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.prod(np.maximum(shared, 0), axis=-1)
    areas = (np.prod(np.maximum(x[..., 2:] - x[..., :2], 0), axis=-1) for x in (a, b))
    union = sum(areas) - inter
    iou: Floats = inter / np.where(union > 0, union, 1)
    return iou


def _cosines(a: Floats32, *others: Floats32) -> list[Floats32]:
    """(n, C) and any number of (M, C) → as many (n, M); 0 with an embedding of length 0."""
    exact = a.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)[:, None]
    found: list[Floats32] = []
    for other in others:
        there = other.astype(np.float64)
        products = _matmul(exact, there)
        # In float64, products of float32 lengths are either 0 or far above 1e-300.
        products /= np.maximum(lengths * np.linalg.norm(there, axis=1), 1e-300)
        found.append(products.astype(np.float32))
    return found


def _proximity(boxes: Floats32, expected: Floats32, absent: Ints, size_weight: float) -> Floats32:
    """exp(-d) / absent (n, M) of boxes (n, 4) and the expected ones (M, 4), absent (M,) frames ago.

    d is their distance in units of their mean side, + size_weight · |log(ratio of the sides)|.
    """
    (x, y, side), (there_x, there_y, other) = (_place(b) for b in (boxes, expected))
    across, down = x[:, None] - there_x, y[:, None] - there_y
    distance = 2 * np.sqrt(across * across + down * down) / (side[:, None] + other[None])
    if size_weight > 0:
        distance += size_weight * np.abs(np.log(side[:, None] / other[None]))
    near: Floats32 = np.exp(-distance) / absent
    return near.astype(np.float32)


def _place(boxes: Floats32) -> tuple[Floats32, Floats32, Floats32]:
    """Centres x and y of boxes (n, 4) xyxy, and the geometric mean of their sides: (n,) each."""
    low, high = boxes[:, :2], boxes[:, 2:]
    centre = (low + high) / np.float32(2)
    size = np.maximum(high - low, np.float32(1))
    side: Floats32 = np.sqrt(size[:, 0] * size[:, 1])
    return centre[:, 0], centre[:, 1], side
