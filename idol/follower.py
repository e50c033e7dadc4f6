"""Detections in, identities out, frame by frame: all of a stream but the network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from idol.arrays import Floats, Floats32, Ints
from idol.config import Config, TrackerConfig
from idol.instances import Image, Instances
from idol.masks import rle
from idol.spool import Spool
from idol.structures import FrameDetections, Track
from idol.tracker.online import start
from idol.tracker.tracks import AssembledTrack, TrackAssembler
from idol.ytvis import results


class Follower:
    """Tracks the detections of one video, and keeps what its results need. One per video.

    config:      its names and ids of categories
    tracker:     association; None: config.tracker
    keep_tracks: keep the tracks for `finish` and `entries`: of each frame of a track some hundred
                 bytes in memory, and its mask in a temporary file
    """

    def __init__(
        self, config: Config, tracker: TrackerConfig | None = None, *, keep_tracks: bool = True
    ) -> None:
        self.config = config.tracker if tracker is None else tracker
        self._names = config.categories
        # Categories without a data set's ids count from 1.
        self._ids = config.category_ids or tuple(range(1, config.model.num_classes + 1))
        self._keep = keep_tracks
        self.reset()

    def reset(self) -> None:
        """Begin another video: nothing of the last one is remembered."""
        self._tracker = start(self.config)
        self._assembler = TrackAssembler(self.config) if self._keep else None
        self._masks: Spool[dict[int, bytes]] = Spool()
        self._means: dict[int, tuple[Floats, int]] = {}
        self._ended: list[AssembledTrack] = []
        self._size: tuple[int, int] | None = None
        self.frames = 0
        self.closed = False

    def add(
        self,
        found: FrameDetections,
        size: tuple[int, int],
        *,
        image: Image | None = None,
        number: int | None = None,
        time: float = float("nan"),
    ) -> Instances:
        """The instances of the next frame; its detections, also where there are none.

        size:  (height, width) of the frame
        image, number, time: as of Instances; number None: the position in the stream
        """
        if not math.isnan(time):
            found = replace(found, time=time)
        rows, ids = self._tracker.follow(found)
        if self._assembler is not None:
            self._ended += self._assembler.add(found, rows, ids, self._tracker.alive)
            seen = zip(rows, ids, strict=True)
            self._masks.append({row: found.masks[row] for row, i in seen if i >= 0})
        self._size = size
        self.frames += 1
        track_ids = np.array(ids, np.int64)
        named = track_ids >= 0
        chosen, track_ids = np.array(rows, np.int64)[named], track_ids[named]
        class_scores: Floats32 = found.class_scores.numpy(force=True)[chosen]
        counts = tuple(found.masks[row] for row in chosen.tolist())
        labels = self._labels(track_ids, class_scores)
        return Instances(
            frame_index=found.frame_index,
            size=size,
            track_ids=track_ids,
            labels=labels,
            scores=found.scores.numpy(force=True)[chosen],
            class_scores=class_scores,
            boxes=rle.boxes(counts, size),
            counts=counts,
            names=tuple(self._names[i] if self._names else str(i) for i in labels.tolist()),
            image=image,
            number=found.frame_index if number is None else number,
            time=time,
        )

    def _labels(self, track_ids: Ints, class_scores: Floats32) -> Ints:
        """The best class of each identity by the mean of its frames so far."""
        labels = np.zeros(len(track_ids), np.int64)
        for place, (i, scores) in enumerate(zip(track_ids.tolist(), class_scores, strict=True)):
            total, count = self._means.get(i, (np.zeros(len(scores)), 0))
            self._means[i] = total + scores, count + 1
            labels[place] = (total + scores).argmax()
        kept = set(self._tracker.alive)
        self._means = {i: mean for i, mean in self._means.items() if i in kept}
        return labels

    def finish(self) -> list[Track]:
        """End the video: its tracks in the order of their creation, equal to track_video's.

        Raises: ValueError: keep_tracks is off.
        """
        if self._assembler is None:
            raise ValueError("tracks were not kept. Use keep_tracks=True.")
        self.closed = True
        self._ended += self._assembler.finish()
        return [one.track for one in sorted(self._ended, key=lambda one: one.position)]

    def entries(self, video_id: int = 1) -> Iterator[results.Entry]:
        """End the video: entries for results.write, as jobs.evaluate makes them of a whole video,
        one in memory at a time. Raises: ValueError: as finish."""
        tracks, size = self.finish(), self._size or (0, 0)
        for chosen in results.class_entries(tracks, self.config):
            detections = tracks[chosen.track].detections
            masks = (
                self._masks[t][detections[t]] if t in detections else None
                for t in range(self.frames)
            )
            yield results.entry(video_id, self._ids[chosen.label], chosen.score, masks, size)


class StreamFollower:
    """Follows a stream that may change the size of its frames, in memory that does not grow.

    Another size begins another video: its identities are new ones, and their numbers go on after
    those of the videos before.

    config, tracker: as of Follower
    """

    def __init__(self, config: Config, tracker: TrackerConfig | None = None) -> None:
        self._follower = Follower(config, tracker, keep_tracks=False)
        self._size: tuple[int, int] | None = None
        self._offset, self._highest = 0, -1

    @property
    def frames(self) -> int:
        """Frames followed since the last change of size."""
        return self._follower.frames

    def add(
        self, found: FrameDetections, size: tuple[int, int], **about: Any
    ) -> tuple[Instances, bool]:
        """The instances of the next frame, and whether another video begins with it.

        size, about: as of Follower.add; the frame_index of found is not used
        """
        began = size != self._size
        if began and self._size is not None:
            self._follower.reset()
            self._offset = self._highest + 1
        self._size = size
        instances = self._follower.add(replace(found, frame_index=self.frames), size, **about)
        if self._offset:
            instances = replace(instances, track_ids=instances.track_ids + self._offset)
        self._highest = max([self._highest, *instances.track_ids.tolist()])
        return instances, began
