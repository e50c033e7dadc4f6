"""Stored videos in memory, scored with one tracker configuration after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from idol.config import TrackerConfig
from idol.evaluation import average_precision, tracking_metrics
from idol.evaluation.matching import VideoMatches
from idol.evaluation.stored_overlaps import VideoOverlaps
from idol.evaluation.tracking_metrics import VideoTracking
from idol.structures import FrameDetections
from idol.tracker.online import track_video
from idol.ytvis.truth import VideoTruth
from pipelines.storage.stored import StoredDetections


@dataclass(frozen=True, slots=True)
class LoadedVideo:
    """All that tracking and scoring need of a video with detections."""

    frames: list[FrameDetections]
    overlaps: VideoOverlaps


@dataclass(frozen=True, slots=True)
class MissedVideo:
    """A video with truth but without detections: its score where nothing is found in it."""

    matches: VideoMatches
    counts: VideoTracking

    @classmethod
    def of(cls, truth: VideoTruth) -> MissedVideo:
        """Score no track against this truth, which needs its masks."""
        return cls(
            average_precision.match_video([], truth), tracking_metrics.count_video([], truth)
        )


Videos = Mapping[int, LoadedVideo | MissedVideo]
"""video_id -> video, for every video with truth."""
Scored = tuple[list[VideoMatches], list[VideoTracking]]
"""Matches of videos, and their counts for the tracking metrics: [] where these were not asked."""


def load(
    source: StoredDetections,
    truths: Mapping[int, VideoTruth],
    missed: Mapping[int, MissedVideo],
) -> Videos:
    """Read the stored detections and overlaps.

    truths: video_id -> truth of the videos that have detections
    missed: video_id -> the other videos
    """
    stored = {video.video_id: video for video in source.videos}
    found = {
        video_id: LoadedVideo(
            list(source.frames(stored[video_id])),
            VideoOverlaps.read(source.overlaps(stored[video_id]), truth),
        )
        for video_id, truth in truths.items()
    }
    return {**found, **missed}


def score(
    videos: Videos,
    chosen: Sequence[int],
    config: TrackerConfig,
    category_ids: Sequence[int],
    *,
    tracking: bool = False,
) -> Scored:
    """Track and match videos with one configuration: arithmetic on small arrays.

    chosen:       ids of the videos, in the order of the results
    category_ids: (K,) the data set's category_id of every label
    tracking:     count for the tracking metrics too
    """
    matches: list[VideoMatches] = []
    counts: list[VideoTracking] = []
    for video_id in chosen:
        video = videos[video_id]
        if isinstance(video, MissedVideo):
            matches.append(video.matches)
            counts.append(video.counts)
            continue
        tracks = track_video(video.frames, config)
        matches.append(video.overlaps.matches(tracks, category_ids, config))
        if tracking:
            counts.append(video.overlaps.tracking(tracks, category_ids, config))
    return matches, counts if tracking else []
