"""From frames to FrameDetections: pre-processing, the network and post-processing."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.detection.detector import Detector
    from idol.detection.postprocess import detections

__all__ = ["Detector", "detections"]

__getattr__, __dir__ = attach(__name__)
