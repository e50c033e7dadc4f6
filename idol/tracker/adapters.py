"""Box trackers of the library `trackers` as plug-ins: `--tracker idol.tracker.adapters:ByteTrack`.

They are an extra: docs/association.md says how to install them without a second OpenCV.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np

from idol.arrays import Ints
from idol.config import TrackerConfig
from idol.masks.greedy import greedy
from idol.structures import FrameDetections


class Boxes:
    """A tracker of the library on the boxes that mask NMS leaves.

    Of TrackerConfig it reads mask_nms, match_threshold (IoU of boxes), new_threshold (score of a
    new identity), first_threshold (score of those that are matched first, where a tracker has two
    turns) and memory_lifetime (frames). The rest is as the library has it, but that an identity
    begins with its first detection: prune_short drops the short ones, as of ours.
    """

    kind: ClassVar[str]
    """Class of the library."""
    reads: ClassVar[dict[str, str]]
    """Its argument -> the field of TrackerConfig."""
    fixed: ClassVar[dict[str, Any]] = {"minimum_consecutive_frames": 1}
    """Further arguments."""
    defaults: ClassVar[dict[str, Any]]
    """The library's own numbers, as fields of TrackerConfig."""

    def __init__(self, config: TrackerConfig) -> None:
        self._mask_nms = config.mask_nms
        given = {name: getattr(config, field) for name, field in self.reads.items()}
        self._tracker = getattr(_library("trackers"), self.kind)(**given, **self.fixed)

    def update(self, frame: FrameDetections) -> Ints:
        """The identities of all rows, -1 for those that mask NMS removes or nothing claims."""
        ids = np.full(len(frame), -1, np.int64)
        order = np.argsort(-frame.scores.numpy(force=True), kind="stable")
        near = frame.overlaps.numpy(force=True) > np.float32(self._mask_nms)
        rows = order[greedy(near[np.ix_(order, order)])]
        detections = _library("supervision").Detections(
            xyxy=frame.boxes.numpy(force=True)[rows].astype(np.float64),
            confidence=frame.scores.numpy(force=True)[rows].astype(np.float64),
            data={"row": rows},
        )
        found = self._tracker.update(detections, timestamp=frame.time)
        if len(found):
            ids[found.data["row"]] = found.tracker_id
        return ids


class Sort(Boxes):
    """SORT (2016): a Kalman filter for each box, matched by IoU."""

    kind = "SORTTracker"
    reads: ClassVar = {
        "minimum_iou_threshold": "match_threshold",
        "track_activation_threshold": "new_threshold",
        "lost_track_buffer": "memory_lifetime",
    }
    defaults: ClassVar = {"match_threshold": 0.3, "new_threshold": 0.25, "memory_lifetime": 30}


class ByteTrack(Boxes):
    """ByteTrack (ECCV 2022): detections of high score first, then those of low score."""

    kind = "ByteTrackTracker"
    reads: ClassVar = {**Sort.reads, "high_conf_det_threshold": "first_threshold"}
    defaults: ClassVar = {
        "match_threshold": 0.1,
        "new_threshold": 0.7,
        "first_threshold": 0.6,
        "memory_lifetime": 30,
    }


class OcSort(Boxes):
    """OC-SORT (CVPR 2023): the direction of motion counts, and the filter is mended afterwards."""

    kind = "OCSORTTracker"
    reads: ClassVar = {
        "minimum_iou_threshold": "match_threshold",
        "high_conf_det_threshold": "new_threshold",
        "lost_track_buffer": "memory_lifetime",
    }
    defaults: ClassVar = {"match_threshold": 0.3, "new_threshold": 0.6, "memory_lifetime": 30}


class BotSort(Boxes):
    """BoT-SORT (2022) without its compensation of camera motion, which needs the pictures."""

    kind = "BoTSORTTracker"
    reads: ClassVar = {
        "minimum_iou_threshold_first_assoc": "match_threshold",
        "track_activation_threshold": "new_threshold",
        "high_conf_det_threshold": "first_threshold",
        "lost_track_buffer": "memory_lifetime",
    }
    fixed: ClassVar = {"minimum_consecutive_frames": 1, "enable_cmc": False}
    defaults: ClassVar = {**ByteTrack.defaults, "match_threshold": 0.2}


class CBiou(Boxes):
    """C-BIoU (WACV 2023): boxes are enlarged before they are matched."""

    kind = "CBIoUTracker"
    reads = BotSort.reads
    fixed: ClassVar = {"minimum_consecutive_frames": 1}
    defaults = BotSort.defaults


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} is not installed ({error}): pip install 'idol-vis[supervision]', then pip "
            "install --no-deps trackers, whose dependencies would bring a second OpenCV"
        ) from error
