"""Outputs to FrameDetections: all that stands before and after the network for one frame."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.detection.detector import Detector
    from idol.detection.postprocess import detections

__all__ = [
    "Detector",
    "detections",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Detector": "idol.detection.detector",
        "detections": "idol.detection.postprocess",
    },
)
