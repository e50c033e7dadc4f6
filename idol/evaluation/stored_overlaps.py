"""Scoring from stored overlaps: no mask is opened, so a sweep scores a video in a millisecond.

A spatio-temporal IoU is a ratio of sums over frames, so per-frame intersections and areas of
detections and true instances say everything that average precision and tracking metrics ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from idol.arrays import Floats, Ints
from idol.config import TrackerConfig
from idol.evaluation.matching import VideoMatches, match_entries
from idol.evaluation.overlaps import FrameOverlap, TrackOverlaps, ratio
from idol.evaluation.tracking_metrics import VideoTracking, count_overlaps
from idol.ytvis import results as results_file
from idol.ytvis import truth as truth_file
from idol.ytvis.results import ClassEntry
from idol.ytvis.truth import VideoTruth

if TYPE_CHECKING:  # with torch, which scoring a file does not need
    from idol.structures import Track


@dataclass(frozen=True, slots=True, eq=False)
class VideoOverlaps:
    """The overlaps of one video, checked and laid out once for any number of scorings.

    R counts the detections of all frames, in order of frames; made by `read`.

    truth:        of the video; its masks are not needed
    first:        (T + 1,) row at which the detections of each frame begin, and R
    area:         (R,)     pixels of every detection
    intersection: (R, G)   pixels that detection and true instance share
    truth_area:   (G, T)   pixels of every true instance
    """

    truth: VideoTruth
    first: Ints
    area: Floats
    intersection: Floats
    truth_area: Floats

    @classmethod
    def read(cls, overlaps: Iterable[FrameOverlap], truth: VideoTruth) -> VideoOverlaps:
        """Check the overlaps of a video against its truth.

        overlaps: one for every frame of the video, in any order
        Raises: ValueError: a frame is missing, or they are of another truth.
        """
        frames = {overlap.frame_index: overlap for overlap in overlaps}
        if sorted(frames) != list(range(truth.length)):
            missing = sorted(set(range(truth.length)) - frames.keys())
            raise ValueError(
                f"video {truth.video_id} has {truth.length} frames, overlaps cover {len(frames)}; "
                f"missing: {missing[:5]}. Store the overlaps of every frame, also of empty ones."
            )
        if any(len(frame.truth_area) != len(truth) for frame in frames.values()):
            raise ValueError(
                f"overlaps of video {truth.video_id} were measured against another truth: it has "
                f"{len(truth)} instances. Make the OVERLAP table again from this truth."
            )
        ordered = [frames[t] for t in range(truth.length)]
        truth_area = np.stack([f.truth_area for f in ordered], axis=1).astype(np.float64)
        # The table's 32-bit floats are exact up to 2^24 pixels of one instance in one frame.
        if not np.allclose(truth_area, truth.areas, rtol=1e-6, atol=0.0):
            raise ValueError(
                f"overlaps of video {truth.video_id} were measured against other masks or another "
                "order of instances. Make the OVERLAP table again from this truth."
            )
        return cls(
            truth,
            np.cumsum([0] + [len(frame.area) for frame in ordered]),
            np.concatenate([f.area for f in ordered]).astype(np.float64),
            np.concatenate([f.intersection for f in ordered]).astype(np.float64),
            truth_area,
        )

    def matches(
        self, tracks: Sequence[Track], category_ids: Sequence[int], config: TrackerConfig
    ) -> VideoMatches:
        """Match tracks with the truth: the same as `matching.match_video` on their masks.

        tracks:       of this video, entries as in `results.to_ytvis`
        category_ids: (K,) the data set's category_id of every label
        config:       multi_class and class_score_threshold
        """
        shared = np.zeros((len(tracks), len(self.truth)))
        total = np.zeros(len(tracks))
        average = np.zeros(len(tracks))
        for n, track in enumerate(tracks):
            rows = self.rows(track)[1]
            shared[n] = self.intersection[rows].sum(axis=0)
            total[n] = self.area[rows].sum()
            average[n] = truth_file.average_area(self.area[rows][None])[0]
        iou = ratio(shared, total[:, None] + self.truth_area.sum(axis=1) - shared)
        chosen = results_file.class_entries(tracks, config)
        of_track = np.array([s.track for s in chosen], np.int64)
        return match_entries(
            self.truth,
            entry_categories(chosen, category_ids),
            np.array([s.score for s in chosen], np.float64),
            average[of_track],
            iou[of_track],
            len(chosen) > 0,
            compat=False,
        )

    def tracking(
        self, tracks: Sequence[Track], category_ids: Sequence[int], config: TrackerConfig
    ) -> VideoTracking:
        """Count for the tracking metrics: as `tracking_metrics.count_video` on the masks.

        The table cannot tell a true mask without a pixel from none: it is taken as none.

        tracks, category_ids, config: as of matches
        """
        chosen = results_file.class_entries(tracks, config)
        length = self.truth.length
        of_track = np.zeros((length, len(tracks), len(self.truth)))
        area = np.zeros((len(tracks), length), np.int64)
        present = np.zeros((len(tracks), length), bool)
        for n, track in enumerate(tracks):
            frames, rows = self.rows(track)
            of_track[frames, n] = self.intersection[rows]
            area[n, frames] = self.area[rows]
            present[n, frames] = True
        entries = np.array([s.track for s in chosen], np.int64)
        return count_overlaps(
            self.truth.video_id,
            self.truth.categories,
            TrackOverlaps(
                of_track[:, entries],
                area[entries],
                self.truth_area.astype(np.int64),
                present[entries],
                self.truth_area > 0,
            ),
            truth_categories=self.truth.category_ids,
            track_categories=entry_categories(chosen, category_ids),
        )

    def rows(self, track: Track) -> tuple[Ints, Ints]:
        """Frames of a track in order, and the rows of its detections there."""
        found = np.array(sorted(track.detections.items()), np.int64).reshape(-1, 2)
        rows = self.first[found[:, 0]] + found[:, 1]
        if (rows >= self.first[found[:, 0] + 1]).any():
            raise ValueError(
                f"track {track.track_id} of video {self.truth.video_id} names a detection that the "
                "overlaps lack. Are both from the same detections?"
            )
        return found[:, 0], rows


def match_video_from_overlaps(
    tracks: Sequence[Track],
    overlaps: Iterable[FrameOverlap],
    truth: VideoTruth,
    *,
    category_ids: Sequence[int],
    config: TrackerConfig,
) -> VideoMatches:
    """Match tracks with truth without opening a mask: the same as match_video on their masks.

    tracks, category_ids, config: as of VideoOverlaps.matches
    overlaps, truth:              as of VideoOverlaps.read
    Raises: ValueError: a frame is missing, or the truth has another number of instances.
    """
    return VideoOverlaps.read(overlaps, truth).matches(tracks, category_ids, config)


def entry_categories(chosen: Sequence[ClassEntry], known: Sequence[int]) -> Ints:
    """The category_id of every entry; known: (K,) of every label."""
    return np.array([known[s.label] for s in chosen], np.int64)
