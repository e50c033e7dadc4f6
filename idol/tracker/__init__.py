"""Detections to tracks: association, the memory bank, and the tracks that come of it."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.config.tracker import TrackerConfig
    from idol.tracker.online import Tracker, select, subset, track_video
    from idol.tracker.tracks import AssembledTrack, TrackAssembler

__all__ = [
    "AssembledTrack",
    "TrackAssembler",
    "Tracker",
    "TrackerConfig",
    "select",
    "subset",
    "track_video",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "AssembledTrack": "idol.tracker.tracks",
        "TrackAssembler": "idol.tracker.tracks",
        "Tracker": "idol.tracker.online",
        "TrackerConfig": "idol.config.tracker",
        "select": "idol.tracker.online",
        "subset": "idol.tracker.online",
        "track_video": "idol.tracker.online",
    },
)
