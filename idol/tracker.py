"""Online association: a memory bank, temporally weighted embeddings, and identities (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idol.assembler import AssembledTrack, TrackAssembler
from idol.config import TrackerConfig
from idol.structures import FrameDetections, Track

__all__ = ["Tracker", "TrackerConfig", "select", "subset", "track_video"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Similarity = npt.NDArray[np.floating[Any]]


class Tracker:
    """Gives the detections of one video their identities, frame by frame.

    A pure function of small arrays: embeddings, scores and the matrix of mask overlaps. What it
    keeps does not grow with the video: at most memory_length embeddings of every instance seen in
    the last memory_lifetime frames. One tracker per video.

    Its clock is the call: every update is one frame, also of a video sampled at every third frame
    and also with N = 0, so a frame without detections must be passed as well.
    """

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config
        self._clock = 0
        self._last_index: int | None = None
        self._next_id = 0
        self._memory: _Memory | None = None  # made when the embedding size is known

    @property
    def alive(self) -> tuple[int, ...]:
        """Track ids that can still be continued, in the order of their creation."""
        return () if self._memory is None else tuple(self._memory.ids.tolist())

    def update(self, frame: FrameDetections) -> Tensor:
        """Associate one frame (specification 4.3; paper Eq. 5 to 7, see TrackerConfig).

        Every row takes part, whatever its score: `select` applies score_threshold before. Rows in
        another order than descending score are considered in descending score.

        frame:   the next frame; frame_index must grow from call to call
        returns: (N,) int64 track ids; -1: no identity (suppressed by mask NMS, or neither matched
                 nor confident enough to be new). Ids count from 0 and are never used again.
        errors:  ValueError, before anything is changed, for frames out of order or repeated,
                 numbers that are not finite, scores outside [0, 1], another embedding size
        """
        config = self.config
        arrays = self._read(frame)
        order = np.argsort(-arrays.scores, kind="stable")
        rows = order[_suppress(arrays.overlaps[np.ix_(order, order)], config.mask_nms)]
        scores, labels = arrays.scores[rows], arrays.labels[rows]
        embeddings, boxes = arrays.embeddings[rows], arrays.boxes[rows]

        known = self._memory is not None and len(self._memory.ids) > 0
        matches = np.full(len(rows), -1)
        if self._memory is not None and known and len(rows):
            similarity = _similarity(embeddings, boxes, labels, self._memory, self._clock, config)
            matches = _assign(similarity, self._memory.existence, config)
        # Float32 comparisons on purpose: a threshold is rounded like the scores it meets.
        threshold = np.float32(config.new_threshold if known else config.first_threshold)
        born = np.flatnonzero((matches < 0) & (scores > threshold))

        # From here on nothing can fail: a refused frame leaves the tracker as it was.
        ids = np.full(len(rows), -1)
        continued = np.flatnonzero(matches >= 0)
        new_ids = np.arange(self._next_id, self._next_id + len(born))
        if self._memory is None and len(frame):
            self._memory = _Memory.empty(embeddings.shape[1], config)
        if self._memory is not None:
            ids[continued] = self._memory.ids[matches[continued]]
            self._memory.append(
                matches[continued],
                embeddings[continued],
                boxes[continued],
                scores[continued],
                labels[continued],
                self._clock,
            )
            self._memory.add(
                new_ids, embeddings[born], boxes[born], scores[born], labels[born], self._clock
            )
            self._memory.forget(self._clock - config.memory_lifetime)
        ids[born] = new_ids
        self._next_id += len(born)
        self._clock += 1
        self._last_index = frame.frame_index

        result = np.full(len(frame), -1)
        result[rows] = ids
        return torch.from_numpy(result).to(frame.scores.device)

    def _read(self, frame: FrameDetections) -> _Arrays:
        """The frame as checked numpy arrays."""
        index = frame.frame_index
        if self._last_index is not None and index <= self._last_index:
            raise ValueError(
                f"frames must come in order, but frame {index} came after frame "
                f"{self._last_index}. Sort them by frame_index; use a new Tracker for each video."
            )
        arrays = _Arrays(
            scores=_numpy(frame.scores),
            embeddings=_numpy(frame.embeddings),
            overlaps=_numpy(frame.overlaps),
            boxes=_numpy(frame.boxes),
            labels=_labels(frame.class_scores),
        )
        for name in ("scores", "embeddings", "overlaps", "boxes"):
            values: Floats = getattr(arrays, name)
            finite = np.isfinite(values)
            if not finite.all():
                bad = np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))
                raise ValueError(
                    f"{name} of frame {index} must be finite, but rows {bad[:10].tolist()} "
                    f"({len(bad)} of {len(values)}) are not. Check the checkpoint that made them."
                )
        if len(arrays.scores) and not (arrays.scores.min() >= 0 and arrays.scores.max() <= 1):
            raise ValueError(
                f"scores of frame {index} must lie in [0, 1], got "
                f"{arrays.scores.min()} to {arrays.scores.max()}. Apply the sigmoid to logits."
            )
        size = arrays.embeddings.shape[1]
        if self._memory is not None and len(frame) and size != self._memory.embeddings.shape[1]:
            raise ValueError(
                f"embeddings of frame {index} have size {size}, those before it "
                f"{self._memory.embeddings.shape[1]}. All frames must come from one checkpoint."
            )
        return arrays


@dataclass(frozen=True, slots=True)
class _Arrays:
    """One frame on the host."""

    scores: Floats  # (N,)
    embeddings: Floats  # (N, C)
    overlaps: Floats  # (N, N)
    boxes: Floats  # (N, 4) xyxy
    labels: Ints  # (N,)


@dataclass(slots=True)
class _Memory:
    """M instances in the order of their creation, as arrays."""

    config: TrackerConfig
    ids: Ints  # (M,)
    embeddings: Floats  # (M, C) ê_j of Eq. 5, brought up to date when an instance is seen
    boxes: Floats  # (M, 4) xyxy, where each was last seen
    motion: Floats  # (M, 4) change of the box per frame, from the last two sightings
    history: Floats  # (M, T, C) the last embeddings, newest last, zeros before the first
    history_scores: Floats  # (M, T)
    existence: Floats  # (M,) frames in which the instance was seen
    born: Ints  # (M,) clock of its first frame
    last_seen: Ints  # (M,)
    labels: Ints  # (M,) class of its last detection
    weights: Floats  # (T + 1, T) the part of the weights that depends on the count only

    @classmethod
    def empty(cls, size: int, config: TrackerConfig) -> _Memory:
        # A moving average has no use for the past.
        length = 0 if config.weighting == "momentum" else config.memory_length
        return cls(
            config=config,
            ids=np.zeros(0, np.int64),
            embeddings=np.zeros((0, size), np.float32),
            boxes=np.zeros((0, 4), np.float32),
            motion=np.zeros((0, 4), np.float32),
            history=np.zeros((0, length, size), np.float32),
            history_scores=np.zeros((0, length), np.float32),
            existence=np.zeros(0, np.float32),
            born=np.zeros(0, np.int64),
            last_seen=np.zeros(0, np.int64),
            labels=np.zeros(0, np.int64),
            weights=_recency(length, config),
        )

    def append(
        self,
        rows: Ints,
        embeddings: Floats,
        boxes: Floats,
        scores: Floats,
        labels: Ints,
        clock: int,
    ) -> None:
        """Instances rows (n,) were seen again, with these embeddings (n, C), boxes (n, 4)."""
        if len(rows) == 0:
            return
        self.existence[rows] += 1
        elapsed = (clock - self.last_seen[rows])[:, None]
        self.motion[rows] = (boxes - self.boxes[rows]) / elapsed
        self.last_seen[rows] = clock
        self.boxes[rows] = boxes
        self.labels[rows] = labels
        if self.config.weighting == "momentum":
            share = self.config.momentum
            self.embeddings[rows] = (1 - share) * self.embeddings[rows] + share * embeddings
            return
        history = np.concatenate([self.history[rows, 1:], embeddings[:, None]], axis=1)
        past = np.concatenate([self.history_scores[rows, 1:], scores[:, None]], axis=1)
        self.history[rows], self.history_scores[rows] = history, past
        self.embeddings[rows] = self._summarise(history, past, self.existence[rows])

    def add(
        self,
        ids: Ints,
        embeddings: Floats,
        boxes: Floats,
        scores: Floats,
        labels: Ints,
        clock: int,
    ) -> None:
        """New instances with these ids (n,)."""
        count = len(ids)
        if count == 0:
            return
        history = np.zeros((count, *self.history.shape[1:]), np.float32)
        past = np.zeros((count, self.history.shape[1]), np.float32)
        summary = embeddings
        if self.config.weighting != "momentum":
            history[:, -1], past[:, -1] = embeddings, scores
            summary = self._summarise(history, past, np.ones(count, np.float32))
        now = np.full(count, clock)
        self.ids = np.concatenate([self.ids, ids])
        self.embeddings = np.concatenate([self.embeddings, summary])
        self.boxes = np.concatenate([self.boxes, boxes])
        self.motion = np.concatenate([self.motion, np.zeros_like(boxes)])
        self.history = np.concatenate([self.history, history])
        self.history_scores = np.concatenate([self.history_scores, past])
        self.existence = np.concatenate([self.existence, np.ones(count, np.float32)])
        self.born = np.concatenate([self.born, now])
        self.last_seen = np.concatenate([self.last_seen, now])
        self.labels = np.concatenate([self.labels, labels])

    def forget(self, clock: int) -> None:
        """Drop the instances last seen at clock or before."""
        keep = self.last_seen > clock
        if keep.all():
            return
        for name in (
            "ids",
            "embeddings",
            "boxes",
            "motion",
            "history",
            "history_scores",
            "existence",
            "born",
            "last_seen",
            "labels",
        ):
            setattr(self, name, getattr(self, name)[keep])

    def _summarise(self, history: Floats, scores: Floats, existence: Floats) -> Floats:
        """Weighted mean of remembered embeddings, (n, T, C), (n, T) → (n, C)."""
        length = history.shape[1]
        weights = self.weights[np.minimum(existence, length).astype(np.int64)]
        if self.config.weighting == "released":
            weights = weights + scores  # absent entries have score 0 and recency 0
        total = weights.sum(axis=1, keepdims=True)
        # Scores of exactly 0 without a recency term weigh nothing: the newest stands for all.
        empty = total[:, 0] <= 0
        mean = (history * weights[:, :, None]).sum(axis=1) / np.where(total > 0, total, 1)
        mean[empty] = history[empty, -1]
        result: Floats = mean
        return result


def _recency(length: int, config: TrackerConfig) -> Floats:
    """Row L holds the weights of L remembered embeddings, newest last, zeros before."""
    table = np.zeros((length + 1, length), np.float32)
    for count in range(1, length + 1):
        age = np.arange(count, 0, -1)  # t of Eq. 5: 1 is the most recent
        if config.weighting == "paper":
            table[count, length - count :] = config.tau + (
                length / age if config.temporal_weight else 1.0
            )
        elif config.temporal_weight:
            # k · (1/L) in float64 and rounded once, as torch.range makes it in the released code.
            table[count, length - count :] = np.arange(1, count + 1) * (1.0 / count)
    return table


def _suppress(overlaps: Floats, threshold: float) -> Ints:
    """Greedy mask NMS, regardless of class: (N, N) in descending score → kept rows."""
    conflict = np.triu(overlaps > np.float32(threshold), k=1)
    alive = np.ones(len(overlaps), np.bool_)
    for i in np.flatnonzero(conflict.any(axis=1)):
        if alive[i]:
            alive &= ~conflict[i]
    return np.flatnonzero(alive)


def _similarity(
    embeddings: Floats,
    boxes: Floats,
    labels: Ints,
    memory: _Memory,
    clock: int,
    config: TrackerConfig,
) -> Similarity:
    """f(i, j) of detection i and instance j, (n, C) → (n, M); -inf where a gate forbids."""
    if config.similarity == "cosine":
        similarity: Similarity = _cosine(embeddings, memory.embeddings)
    else:
        # torch, not numpy, for product and softmax: the released decision can hang on the last
        # bit (with one instance in memory f = (1 + p) / 2 passes 0.5 only if 1 + p rounds up).
        products = torch.mm(torch.from_numpy(embeddings), torch.from_numpy(memory.embeddings).T)
        if not np.isfinite(products.numpy()).all():
            raise ValueError(
                "products of embeddings overflow float32: their largest entry is "
                f"{max(np.abs(embeddings).max(), np.abs(memory.embeddings).max()):.3g}. "
                "Check the checkpoint that made them."
            )
        if config.similarity == "released":
            similarity = ((products.softmax(dim=1) + products.softmax(dim=0)) / 2).numpy()
        else:
            similarity = _paper_similarity(products, clock - memory.born)
    if config.position_weight > 0:
        similarity = similarity + np.float32(config.position_weight) * _proximity(
            boxes, memory.boxes + memory.motion, clock - memory.last_seen
        )
    if config.min_cosine > -1.0:
        alike = _cosine(embeddings, memory.embeddings) >= np.float32(config.min_cosine)
        similarity = np.where(alike, similarity, -np.inf)
    if config.same_class:
        similarity = np.where(labels[:, None] == memory.labels, similarity, -np.inf)
    return similarity


def _paper_similarity(products: Tensor, existence: Ints) -> Similarity:
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
    similarity: Similarity = ((over_memory + exact.softmax(dim=0)) / 2).numpy()
    return similarity


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


def _assign(similarity: Similarity, existence: Floats, config: TrackerConfig) -> Ints:
    """The memory row of every detection, each row at most once: (n, M) → (n,), -1 for none."""
    threshold = similarity.dtype.type(config.match_threshold)
    ranking = similarity
    if config.similarity == "released" and config.frame_weight:
        # The released code multiplies candidates by their existence time, and the others by the
        # candidates' mean, where several pass. The largest product is always a candidate's, so
        # ranking the candidates is the same, and with a single one the factor changes nothing.
        ranking = similarity * existence.astype(similarity.dtype)
    ranking = np.where(similarity > threshold, ranking, -np.inf)
    matches = np.full(len(similarity), -1)
    passing = np.flatnonzero((ranking > -np.inf).any(axis=1))
    if config.assignment == "argmax":
        best = ranking[passing].argmax(axis=1)
        # Of the detections that want one instance the most similar has it; a tie goes to the
        # higher score, which comes first.
        order = np.argsort(-similarity[passing, best], kind="stable")
        wanted, first = np.unique(best[order], return_index=True)
        matches[passing[order[first]]] = wanted
        return matches
    if config.assignment == "hungarian":
        from scipy.optimize import linear_sum_assignment

        # Leaving a detection unmatched costs nothing, a pair below the threshold is never worth it.
        gain = np.where(ranking > -np.inf, ranking - threshold, 0.0)
        for i, j in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
            if ranking[i, j] > -np.inf:
                matches[i] = j
        return matches
    for i in passing:
        j = int(ranking[i].argmax())
        if ranking[i, j] > -np.inf:
            matches[i] = j
            ranking[:, j] = -np.inf
    return matches


def select(frame: FrameDetections, config: TrackerConfig) -> Tensor:
    """The rows of a frame that enter the tracker (specification 4.2).

    returns: (n,) int64 rows above score_threshold; where there is none and keep_best is set, the
             best row; empty only if the frame is empty or keep_best is not set
    """
    rows = (frame.scores > config.score_threshold).nonzero()[:, 0]
    if len(rows) == 0 and config.keep_best and len(frame):
        return frame.scores.argmax()[None]
    return rows


def subset(frame: FrameDetections, rows: Tensor) -> FrameDetections:
    """A frame with only these rows, (n,) int64, in this order."""
    count = len(frame)
    if len(rows) == count and torch.equal(rows, torch.arange(count, device=rows.device)):
        return frame
    masks = tuple(frame.masks[i] for i in rows.tolist()) if frame.masks else ()
    return FrameDetections(
        frame_index=frame.frame_index,
        scores=frame.scores[rows],
        class_scores=frame.class_scores[rows],
        embeddings=frame.embeddings[rows],
        overlaps=frame.overlaps[rows][:, rows],
        boxes=frame.boxes[rows],
        masks=masks,
    )


def track_video(frames: Iterable[FrameDetections], config: TrackerConfig) -> list[Track]:
    """All tracks of a video (specification 4.4); TrackAssembler has the pruning rule.

    frames:  in order, one for every frame of the video, also those without detections
    returns: tracks in the order of their creation; rows count in the frames as given
    errors:  as Tracker.update
    """
    tracker, assembler = Tracker(config), TrackAssembler(config)
    tracks: list[AssembledTrack] = []
    for frame in frames:
        rows = select(frame, config)
        ids = tracker.update(subset(frame, rows)).tolist()
        tracks += assembler.add(frame, rows.tolist(), ids, tracker.alive)
    tracks += assembler.finish()
    return [one.track for one in sorted(tracks, key=lambda one: one.position)]


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def _labels(class_scores: Tensor) -> Ints:
    if len(class_scores) == 0:
        return np.zeros(0, np.int64)
    labels: Ints = _numpy(class_scores).argmax(axis=1)
    return labels
