"""What an evaluation server computes: overlaps, matching, average precision, tracking metrics."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.evaluation.average_precision import Metrics, evaluate, summarise
    from idol.evaluation.matching import VideoMatches, match_video
    from idol.evaluation.overlaps import frame_overlap
    from idol.evaluation.stored_overlaps import match_video_from_overlaps
    from idol.evaluation.tracking_metrics import (
        TrackingMetrics,
        TrackingOptions,
        count_video,
        summarise_tracking,
    )
    from idol.ytvis.truth import Truth, VideoTruth

__all__ = [
    "Metrics",
    "TrackingMetrics",
    "TrackingOptions",
    "Truth",
    "VideoMatches",
    "VideoTruth",
    "count_video",
    "evaluate",
    "frame_overlap",
    "match_video",
    "match_video_from_overlaps",
    "summarise",
    "summarise_tracking",
]

__getattr__, __dir__ = attach(__name__)
