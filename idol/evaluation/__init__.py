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

__getattr__, __dir__ = attach(
    __name__,
    {
        "Metrics": "idol.evaluation.average_precision",
        "TrackingMetrics": "idol.evaluation.tracking_metrics",
        "TrackingOptions": "idol.evaluation.tracking_metrics",
        "Truth": "idol.ytvis.truth",
        "VideoMatches": "idol.evaluation.matching",
        "VideoTruth": "idol.ytvis.truth",
        "count_video": "idol.evaluation.tracking_metrics",
        "evaluate": "idol.evaluation.average_precision",
        "frame_overlap": "idol.evaluation.overlaps",
        "match_video": "idol.evaluation.matching",
        "match_video_from_overlaps": "idol.evaluation.stored_overlaps",
        "summarise": "idol.evaluation.average_precision",
        "summarise_tracking": "idol.evaluation.tracking_metrics",
    },
)
