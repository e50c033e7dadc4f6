"""From detections to tracks: association, the memory bank, and assembling tracks."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.config.tracker import TrackerConfig
    from idol.tracker.online import Tracker, admitted, track_video
    from idol.tracker.tracks import AssembledTrack, TrackAssembler

__all__ = [
    "AssembledTrack",
    "TrackAssembler",
    "Tracker",
    "TrackerConfig",
    "admitted",
    "track_video",
]

__getattr__, __dir__ = attach(__name__)
