"""Online association: a memory bank, temporally weighted embeddings, and identities (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idol import association
from idol.assembler import AssembledTrack, TrackAssembler
from idol.config import TrackerConfig
from idol.memory_bank import MemoryBank
from idol.structures import FrameDetections, Track

__all__ = ["Tracker", "TrackerConfig", "select", "subset", "track_video"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


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
        self._memory: MemoryBank | None = None  # made when the embedding size is known

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
        now = self._read(frame)
        rows = _survivors(now.scores, now.overlaps, config.mask_nms)
        if rows is None:
            rows = np.arange(len(frame))
        else:
            now = now.of(rows)
        memory = self._memory
        known = memory is not None and len(memory) > 0
        matches = np.full(len(rows), -1)
        if memory is not None and known and len(rows):
            found, bar = association.similarity(
                now.embeddings, now.boxes, now.scores, now.labels, memory, self._clock, config
            )
            matches = association.assign(found, bar, memory.existence, config)
        # Float32 comparisons on purpose: a threshold is rounded like the scores it meets.
        threshold = np.float32(config.new_threshold if known else config.first_threshold)
        born = ((matches < 0) & (now.scores > threshold)).nonzero()[0]

        # From here on nothing can fail: a refused frame leaves the tracker as it was.
        ids = np.full(len(rows), -1)
        new_ids = np.arange(self._next_id, self._next_id + len(born))
        ids[born] = new_ids
        if memory is None and len(frame):
            memory = self._memory = MemoryBank(now.embeddings.shape[1], config)
        if memory is not None:
            continued = (matches >= 0).nonzero()[0]
            ids[continued] = memory.ids[matches[continued]]
            memory.see(matches[continued], *now.rows(continued), self._clock)
            memory.add(new_ids, *now.rows(born), self._clock)
            memory.forget(self._clock - config.memory_lifetime)
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

    def rows(self, rows: Ints) -> tuple[Floats, Floats, Floats, Ints]:
        """Embeddings, boxes, scores and labels of these rows, (n,)."""
        return self.embeddings[rows], self.boxes[rows], self.scores[rows], self.labels[rows]

    def of(self, rows: Ints) -> _Arrays:
        """These rows, (n,), in this order, without overlaps: they have been settled."""
        embeddings, boxes, scores, labels = self.rows(rows)
        return _Arrays(scores, embeddings, self.overlaps[:0], boxes, labels)


def _survivors(scores: Floats, overlaps: Floats, threshold: float) -> Ints | None:
    """Greedy mask NMS, regardless of class.

    scores:   (N,)
    overlaps: (N, N)
    returns:  (n,) the rows that are left, in descending score; None: all, as they stand
    """
    conflict = overlaps > np.float32(threshold)
    ordered = bool((scores[1:] <= scores[:-1]).all())
    # Nothing but the diagonal, and that only where the threshold is below 1: nobody is in another's
    # way.
    if np.count_nonzero(conflict) == np.count_nonzero(conflict.diagonal()):
        return None if ordered else np.argsort(-scores, kind="stable")
    order = np.arange(len(scores)) if ordered else np.argsort(-scores, kind="stable")
    conflict = np.triu(conflict if ordered else conflict[np.ix_(order, order)], k=1)
    alive = np.ones(len(scores), np.bool_)
    for i in np.flatnonzero(conflict.any(axis=1)):
        if alive[i]:
            alive &= ~conflict[i]
    survivors: Ints = order[alive]
    return survivors


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
    if tensor.dtype != torch.float32 or tensor.requires_grad or tensor.device.type != "cpu":
        tensor = tensor.detach().to("cpu", torch.float32)
    array: Floats = tensor.numpy()
    return array


def _labels(class_scores: Tensor) -> Ints:
    if len(class_scores) == 0:
        return np.zeros(0, np.int64)
    labels: Ints = _numpy(class_scores).argmax(axis=1)
    return labels
