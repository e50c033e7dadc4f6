"""Online association: a memory bank, temporally weighted embeddings, and identities (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from idol.arrays import Bools, Floats32, Ints, host, tensor
from idol.config import TrackerConfig
from idol.masks.greedy import greedy
from idol.structures import FrameDetections, Track
from idol.tracker import association
from idol.tracker.memory_bank import FrameArrays, MemoryBank
from idol.tracker.plugin import PlugIn
from idol.tracker.tracks import AssembledTrack, TrackAssembler

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Tracker", "TrackerConfig", "admitted", "start", "track_video"]


class Tracker:
    """Gives the detections of one video their identities, frame by frame. One tracker per video.

    Its memory does not grow with the video: at most memory_length embeddings of every instance
    seen in the last memory_lifetime frames. Every call counts as one frame, also in a video
    sampled at a stride; frames without detections must be passed too.
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

        All rows take part, in descending score; only `follow` applies score_threshold.

        frame:   the next frame; frame_index must grow from call to call
        returns: (N,) int64 track ids; -1: no identity (suppressed by mask NMS, or neither matched
                 nor confident enough to be new). Ids count from 0 and are not reused.
        Raises: ValueError: frames out of order or repeated, numbers that are not finite, scores
            outside [0, 1], another embedding size. The tracker is unchanged.
        """
        ids = self._associate(_arrays(frame), host(frame.overlaps), frame.frame_index)
        found: Tensor = tensor(ids, frame.scores.device)
        return found

    def follow(self, frame: FrameDetections) -> tuple[list[int], list[int]]:
        """As `update`, of the `admitted` rows only: these n rows, and their track ids."""
        now, overlaps = _arrays(frame), host(frame.overlaps)
        rows = admitted(frame, self.config)
        count = len(rows)
        if count < len(now):
            # Frames are usually in descending score, so the admitted rows are the first ones.
            if count == 0 or rows[-1] == count - 1:
                now, overlaps = now.rows(slice(count)), overlaps[:count, :count]
            else:
                now, overlaps = now.rows(rows), overlaps[np.ix_(rows, rows)]
        return rows.tolist(), self._associate(now, overlaps, frame.frame_index).tolist()

    def _associate(self, now: FrameArrays, overlaps: Floats32, index: int) -> Ints:
        """Identities of n detections with mask IoU (n, n), as `update` returns them."""
        config = self.config
        self._check(now, overlaps, index)
        entered = len(now)
        rows = _survivors(now.scores, overlaps, config.mask_nms)
        if rows is not None:
            now = now.rows(rows)
        count = len(now)
        memory = self._memory
        known = memory is not None and len(memory) > 0
        ids = matches = np.full(count, -1)
        if memory is not None and known and count:
            found, bar = association.similarity(now, memory, self._clock, config)
            matches = association.assign_identities(found, bar, memory.existence, config)
        matched = matches >= 0
        # Compared in float32: the threshold is rounded to the precision of the scores.
        threshold = np.float32(config.new_threshold if known else config.first_threshold)
        born = ((now.scores > threshold) > matched).nonzero()[0]
        if config.new_overlap < 1 and len(born):
            born = _apart(born, matched, overlaps, rows, config.new_overlap)

        # Nothing below can raise, so a refused frame leaves the tracker unchanged.
        if memory is None and entered:
            memory = self._memory = MemoryBank(
                now.embeddings.shape[1], now.class_scores.shape[1], config
            )
        if memory is not None:
            continued = matched.nonzero()[0]
            if len(continued) == count:  # the usual case
                ids = memory.ids[matches]
                memory.see(matches, now, self._clock)
            elif len(continued):
                again = matches[continued]
                ids[continued] = memory.ids[again]
                memory.see(again, now.rows(continued), self._clock)
            if len(born):
                new_ids = np.arange(self._next_id, self._next_id + len(born))
                ids[born] = new_ids
                memory.add(new_ids, now.rows(born), self._clock)
                self._next_id += len(born)
            memory.forget(self._clock - config.memory_lifetime)
        self._clock += 1
        self._last_index = index
        if rows is None:
            return ids
        all_ids = np.full(entered, -1)
        all_ids[rows] = ids
        return all_ids

    def _check(self, arrays: FrameArrays, overlaps: Floats32, index: int) -> None:
        """Raise ValueError for a frame that cannot be tracked."""
        if self._last_index is not None and index <= self._last_index:
            raise ValueError(
                f"frames must come in order, but frame {index} came after frame "
                f"{self._last_index}. Sort them by frame_index; use a new Tracker for each video."
            )
        for name in ("embeddings", "overlaps", "boxes", "scores"):
            values = overlaps if name == "overlaps" else getattr(arrays, name)
            finite = np.isfinite(values)
            if np.count_nonzero(finite) < finite.size:  # three times faster than finite.all()
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
        before = size if self._memory is None else self._memory.embeddings.shape[1]
        if len(arrays) and size != before:
            raise ValueError(
                f"embeddings of frame {index} have size {size}, those before it {before}. "
                "All frames must come from one checkpoint."
            )


def _survivors(scores: Floats32, overlaps: Floats32, threshold: float) -> Ints | None:
    """Greedy mask NMS of scores (N,) with mask IoU (N, N), regardless of class.

    returns: (n,) the remaining rows in descending score; None: all, in their present order
    """
    conflict = overlaps > np.float32(threshold)
    ordered = not np.count_nonzero(scores[1:] > scores[:-1])
    order = np.arange(len(scores)) if ordered else np.argsort(-scores, kind="stable")
    # No conflict off the diagonal: all rows remain.
    if np.count_nonzero(conflict) == np.count_nonzero(conflict.diagonal()):
        return None if ordered else order
    survivors: Ints = order[greedy(conflict if ordered else conflict[np.ix_(order, order)])]
    return survivors


def _apart(born: Ints, matched: Bools, overlaps: Floats32, rows: Ints | None, most: float) -> Ints:
    """The rows of born (b,), in descending score, that duplicate no other detection: their mask IoU
    with all matched (n,) rows, and with those returned before them, is at most `most`.

    overlaps: (N, N) mask IoU of the frame; rows: the n that survived NMS, None: all
    """
    near = (overlaps if rows is None else overlaps[np.ix_(rows, rows)]) > np.float32(most)
    taken, kept = matched.copy(), []
    for i in born.tolist():
        if not (near[i] & taken).any():
            taken[i] = True
            kept.append(i)
    return np.array(kept, np.int64)


def admitted(frame: FrameDetections, config: TrackerConfig) -> Ints:
    """The rows (n,) of a frame that enter the tracker (specification 4.2): those above
    score_threshold; if there are none and keep_best is set, the best row."""
    scores = host(frame.scores)
    rows: Ints = (scores > np.float32(config.score_threshold)).nonzero()[0]
    if len(rows) == 0 and config.keep_best and len(scores):
        return np.array([scores.argmax()])
    return rows


def start(config: TrackerConfig) -> Tracker | PlugIn:
    """The tracker of one video: ours, or the plug-in that the configuration names.

    Raises: ValueError: the plug-in cannot be imported.
    """
    return PlugIn(config, admitted) if config.plugin else Tracker(config)


def track_video(frames: Iterable[FrameDetections], config: TrackerConfig) -> list[Track]:
    """All tracks of a video (specification 4.4); TrackAssembler describes the pruning.

    frames:  in order, one for every frame of the video, also those without detections
    returns: tracks in the order of their creation; their rows are those of the given frames
    Raises: ValueError: as Tracker.update.
    """
    tracker, assembler = start(config), TrackAssembler(config)
    tracks: list[AssembledTrack] = []
    for frame in frames:
        tracks += assembler.add(frame, *tracker.follow(frame), tracker.alive)
    tracks += assembler.finish()
    return [one.track for one in sorted(tracks, key=lambda one: one.position)]


def _arrays(frame: FrameDetections) -> FrameArrays:
    """The arrays of a frame, on the host; views of its memory if it is there."""
    tensors = frame.scores, frame.embeddings, frame.boxes, frame.class_scores
    return FrameArrays(*map(host, tensors))
