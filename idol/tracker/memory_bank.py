"""The tracker's memory of recently seen instances: arrays of bounded size (paper Sec. 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from idol.arrays import Floats32, Ints
from idol.config import TrackerConfig


@dataclass(frozen=True, slots=True)
class FrameArrays:
    """The part of n detections of a frame that association uses, on the host.

    scores:       (n,)
    embeddings:   (n, C)
    boxes:        (n, 4) xyxy
    class_scores: (n, K)
    """

    scores: Floats32
    embeddings: Floats32
    boxes: Floats32
    class_scores: Floats32

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def labels(self) -> Ints:
        """The best class of each, (n,)."""
        return self.class_scores.argmax(axis=1) if len(self) else np.zeros(0, np.int64)

    def rows(self, rows: Ints | slice) -> FrameArrays:
        """These rows, given as (n,) indices or as a slice, in this order."""
        return FrameArrays(
            self.scores[rows], self.embeddings[rows], self.boxes[rows], self.class_scores[rows]
        )


class MemoryBank:
    """M instances in the order of their creation. T and C are 0 where the options need no array."""

    def __init__(self, size: int, num_classes: int, config: TrackerConfig) -> None:
        past = config.weighting in ("paper", "released", "similarity_guided")
        length = config.memory_length if past else 0

        def floats(*shape: int) -> Floats32:
            return np.zeros((0, *shape), np.float32)

        self.ids: Ints = np.zeros(0, np.int64)  # (M,)
        self.embeddings = floats(size)  # (M, C) ê_j of Eq. 5, or as config.weighting says
        self.newest = floats(size if config.newest_too else 0)  # (M, C) the last embedding
        self.boxes = floats(4)  # (M, 4) xyxy when last seen
        self.motion = floats(4)  # (M, 4) change of the box per frame; 0 without position_weight
        self.history = floats(length, size)  # (M, T, C) last embeddings, newest last, zeros before
        self.history_scores = floats(length)  # (M, T) their scores
        self.existence = floats()  # (M,) number of frames in which the instance was seen
        self.born: Ints = np.zeros(0, np.int64)  # (M,) number of its first frame
        self.last_seen: Ints = np.zeros(0, np.int64)  # (M,) number of its last frame
        self.labels: Ints = np.zeros(0, np.int64)  # (M,) class of its last detection
        # (M, K) mean class scores of its detections
        self.class_scores = floats(num_classes if config.class_weight > 0 else 0)
        self._arrays = tuple(vars(self))
        self.config = config
        self._weights = _recency(length, config)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Ints, new: FrameArrays, clock: int) -> None:
        """Append instances with these ids (n,), seen for the first time as n detections."""
        before = len(self)
        for name in self._arrays:
            old = getattr(self, name)
            zeros = np.zeros((len(ids), *old.shape[1:]), old.dtype)
            setattr(self, name, np.concatenate([old, zeros]))
        rows = np.arange(before, len(self))
        self.ids[rows], self.born[rows], self.embeddings[rows] = ids, clock, new.embeddings
        self._note(rows, new, clock)

    def see(self, rows: Ints, now: FrameArrays, clock: int) -> None:
        """Update the instances rows (n,), each at most once, with their n detections of now."""
        config, embeddings = self.config, now.embeddings
        if config.position_weight > 0:
            elapsed = (clock - self.last_seen[rows])[:, None]
            self.motion[rows] = (now.boxes - self.boxes[rows]) / elapsed
        if config.weighting == "last":
            self.embeddings[rows] = embeddings
        elif config.weighting in ("momentum", "similarity_guided"):
            share: Floats32 | np.float32 = np.float32(config.momentum)
            if config.weighting == "similarity_guided":
                share = self._likeness(rows, embeddings)[:, None]
            self.embeddings[rows] = (1 - share) * self.embeddings[rows] + share * embeddings
        self._note(rows, now, clock)

    def _note(self, rows: Ints, now: FrameArrays, clock: int) -> None:
        """What a first and a later detection change in the same way."""
        config = self.config
        self.existence[rows] += 1
        self.last_seen[rows] = clock
        self.boxes[rows] = now.boxes
        self.labels[rows] = now.labels
        if config.class_weight > 0:
            share = 1 / self.existence[rows][:, None]
            self.class_scores[rows] += share * (now.class_scores - self.class_scores[rows])
        if config.newest_too:
            self.newest[rows] = now.embeddings
        if self.history.shape[1] == 0:
            return
        history, past = self.history[rows], self.history_scores[rows]
        history[:, :-1], history[:, -1] = history[:, 1:], now.embeddings
        past[:, :-1], past[:, -1] = past[:, 1:], now.scores
        self.history[rows], self.history_scores[rows] = history, past
        if config.weighting != "similarity_guided":
            self.embeddings[rows] = self._summarise(history, past, self.existence[rows])

    def forget(self, clock: int) -> None:
        """Drop the instances last seen in frame clock or before."""
        if len(self) == 0 or self.last_seen.min() > clock:
            return
        keep = self.last_seen > clock
        for name in self._arrays:
            setattr(self, name, getattr(self, name)[keep])

    def _likeness(self, rows: Ints, embeddings: Floats32) -> Floats32:
        """Mean cosine of new embeddings (n, C) with those remembered, at least 0: (n,)."""
        known = self.history[rows].astype(np.float64)
        exact = embeddings.astype(np.float64)
        lengths = np.linalg.norm(known, axis=2) * np.linalg.norm(exact, axis=1)[:, None]
        products = np.einsum("ntc,nc->nt", known, exact)
        # Absent entries are zeros and add nothing.
        cosines = (products / np.where(lengths > 0, lengths, 1)).sum(axis=1)
        count = np.minimum(self.existence[rows], known.shape[1])
        likeness: Floats32 = np.clip(cosines / count, 0, 1).astype(np.float32)
        return likeness

    def _summarise(self, history: Floats32, scores: Floats32, existence: Floats32) -> Floats32:
        """Weighted mean of remembered embeddings, (n, T, C), (n, T) → (n, C)."""
        length = history.shape[1]
        weights = self._weights[np.minimum(existence, length).astype(np.int64)]
        if self.config.weighting == "released":
            weights += scores  # absent entries have score 0 and recency 0
        total = weights.sum(axis=1, keepdims=True)
        # Oldest first: the order of additions decides the last bit.
        mean: Floats32 = history[:, 0] * weights[:, :1]
        for t in range(1, length):
            mean += history[:, t] * weights[:, t : t + 1]
        # Scores of exactly 0 without a recency term give no weight: use the newest embedding.
        empty = total[:, 0] <= 0
        mean /= np.where(total > 0, total, 1)
        mean[empty] = history[empty, -1]
        return mean


def _recency(length: int, config: TrackerConfig) -> Floats32:
    """(T + 1, T): row L holds the weights of L embeddings, newest last, zeros before."""
    table = np.zeros((length + 1, length), np.float32)
    for count in range(1, length + 1):
        age = np.arange(count, 0, -1)  # t of Eq. 5: 1 is the most recent
        if config.weighting == "paper":
            table[count, length - count :] = config.tau + (
                length / age if config.temporal_weight else 1.0
            )
        elif config.temporal_weight:
            # k · (1/L) in float64, rounded once, like torch.range in the released code.
            table[count, length - count :] = np.arange(1, count + 1) * (1.0 / count)
    return table
