"""Tracks from tracked frames, one frame at a time: pruning, mean class scores, masks as bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from idol.arrays import Floats, host, tensor
from idol.config import TrackerConfig
from idol.structures import FrameDetections, Track


@dataclass(frozen=True, slots=True)
class AssembledTrack:
    """A finished track.

    position: rank in the order of creation; ranks of dropped tracks are missing. Streamed tracks
              sorted by it are the tracks of track_video
    masks:    frame_index -> compressed RLE counts; empty without keep_masks or masks of frames
    """

    track: Track
    position: int
    masks: dict[int, bytes]


class TrackAssembler:
    """Gathers tracked detections into tracks (specification 4.4), streaming.

    After frame prune_after, a track seen in fewer than prune_short frames and absent in the last
    two is dropped. The tracker's memory keeps that identity: if it is matched again, a new track
    of the same id starts, later in the order of creation, as in the released code. With
    prune_at_end, tracks are pruned once more at the end as if two empty frames followed.

    Of a live track it keeps the rows, the sum of class scores and, with keep_masks, RLE bytes; of
    a finished or dropped track, nothing. One assembler per video.
    """

    def __init__(self, config: TrackerConfig, *, keep_masks: bool = False) -> None:
        self.config = config
        self.keep_masks = keep_masks
        self._histories: dict[int, _History] = {}
        # Only these can be dropped; pruning looks at no others, so its cost does not grow.
        self._young: dict[int, _History] = {}
        self._created = 0
        self._clock = -1
        self._closed = False

    def add(
        self,
        frame: FrameDetections,
        rows: Sequence[int],
        track_ids: Sequence[int],
        alive: Collection[int],
    ) -> list[AssembledTrack]:
        """Add the next frame, also one without detections.

        rows, track_ids: (n,) rows of frame that entered the tracker; their identities, -1: none
        alive:   ids that the tracker can still continue (Tracker.alive after this frame)
        returns: the tracks that ended with this frame. One that may still be pruned comes later
        Raises: ValueError: rows and track_ids differ in length, an identity comes twice, or finish
            was called. The assembler is unchanged.
        """
        given = [i for i in track_ids if i >= 0]
        if self._closed:
            raise ValueError("this video is finished. Use a new TrackAssembler for each video.")
        if len(rows) != len(track_ids):
            raise ValueError(
                f"rows and track_ids of frame {frame.frame_index} must be as many, got "
                f"{len(rows)} and {len(track_ids)}"
            )
        if len(set(given)) != len(given):
            twice = sorted({i for i in given if given.count(i) > 1})
            raise ValueError(
                f"an identity has one detection per frame, but frame {frame.frame_index} gives "
                f"{twice[:10]} several"
            )
        self._clock += 1
        class_scores = host(frame.class_scores)
        for track_id, row in zip(track_ids, rows, strict=True):
            if track_id < 0:
                continue
            if track_id not in self._histories:
                history = _History(position=self._created)
                self._histories[track_id] = self._young[track_id] = history
                self._created += 1
            history = self._histories[track_id]
            history.detections[frame.frame_index] = row
            # Summed in float64 to keep the mean of a long track exact.
            history.total = history.total + class_scores[row]
            history.last_seen = self._clock
            if self.keep_masks and frame.masks:
                history.masks[frame.frame_index] = frame.masks[row]
            if len(history.detections) >= self.config.prune_short:
                self._young.pop(track_id, None)
        if self._clock > self.config.prune_after:
            self._prune(self._clock - 2)
        kept = {*alive, *self._young}
        ended = [i for i in self._histories if i not in kept]
        return [self._histories.pop(i).close(i) for i in ended]

    def finish(self) -> list[AssembledTrack]:
        """End the video: the remaining tracks, in the order of their creation; after it, none."""
        if self._closed:
            return []
        self._closed = True
        if self.config.prune_at_end and self._clock > self.config.prune_after:
            self._prune(self._clock)
        self._young.clear()
        return [self._histories.pop(i).close(i) for i in list(self._histories)]

    def _prune(self, clock: int) -> None:
        """Drop young tracks last seen at clock or before."""
        for track_id in [i for i, history in self._young.items() if history.last_seen <= clock]:
            del self._young[track_id], self._histories[track_id]


@dataclass(slots=True)
class _History:
    """One identity so far."""

    position: int
    detections: dict[int, int] = field(default_factory=dict)
    masks: dict[int, bytes] = field(default_factory=dict)
    total: Floats = field(default_factory=lambda: np.zeros(1))
    last_seen: int = -1

    def close(self, track_id: int) -> AssembledTrack:
        mean = (self.total / len(self.detections)).astype(np.float32)
        track = Track(track_id, self.detections, tensor(mean))
        return AssembledTrack(track, self.position, self.masks)
