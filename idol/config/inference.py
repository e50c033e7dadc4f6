"""The numbers of per-frame detection, and those of the analysis of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idol.config.checks import at_most, not_negative, positive, require, unit
from idol.config.effects import beside

Speed = Literal["exact", "fast"]
"""See DetectConfig.speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig:
    """From network outputs to stored detections of a frame (specification 4.2)."""

    score_floor: float = 0.1
    """Detections at or below this score are not stored, except a frame's best; a sweep of the
    tracker can use any score_threshold from here upwards. Released: 0.1."""
    box_nms: float = 0.9
    """IoU above which class-aware box NMS removes the lower-scored detection."""
    mask_resize: Literal["released", "smooth"] = "released"
    """From logits at 1/4 of the input to the original size. released: bilinear to the input's
    size, threshold, nearest. smooth: bilinear to the original size, threshold: smooth outlines."""
    max_detections: int = 300
    """At most this many per frame are stored, best first. 300: every query of the full-size
    networks, so that nothing is left out that the released code keeps."""
    batch_frames: int = 8
    """Frames in one forward pass."""
    speed: Speed = "exact"
    """exact: in the precision of the weights, as released. fast: in 16 bits where the device has
    units for them; on a GPU also with CUDA graphs and masks made on the device. The loss in
    accuracy is in docs/internals/performance.md."""
    frames_per_shard: int = 64
    """Frames of a shard (short videos together, or a part of a long one), a worker's unit of work:
    what is repeated when one dies."""

    def __post_init__(self) -> None:
        unit(self, "score_floor", "box_nms")
        positive(self, "max_detections", "batch_frames", "frames_per_shard")
        at_most(self, 10_000, "max_detections", "batch_frames", "frames_per_shard")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """Inference of networks of clips, and how clips are joined (IFC and SeqFormer as released)."""

    length: int = 0
    """Frames of a clip; 0: the whole video is one clip."""
    stride: int = 1
    """Frames from the start of a clip to that of the next. Clips that share no frame are not
    joined."""
    match_threshold: float = 0.01
    """Soft mask IoU above which a detection of a clip continues an instance."""
    candidates: int = 10
    """SeqFormer: so many object queries of highest score are the detections of a clip. IFC takes
    those whose best class is not "no object"."""
    score_threshold: float = beside(0.05, several_classes=(True,))
    """A class of an instance is a result where its mean score over the clips is above this."""
    several_classes: bool = True
    """False: every instance has its best class alone, whatever its score."""
    batch_frames: int = 8
    """Frames that the backbone takes at once."""

    def __post_init__(self) -> None:
        not_negative(self, "length")
        positive(self, "stride", "candidates", "batch_frames")
        at_most(self, 100_000, "length", "stride", "candidates", "batch_frames")
        unit(self, "match_threshold", "score_threshold")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysisConfig:
    """Oracle experiments, clip matching, error shares and intervals of `jobs.score`."""

    identity_iou: float = 0.5
    """Mask IoU from which a prediction is matched to a true instance and gets its identity."""
    background_iou: float = 0.1
    """Spatio-temporal IoU below which a track counts as background, not as badly localised."""
    clip_match_iou: float = 0.05
    """Mask IoU above which tracks of two overlapping clips are joined (IFC's, as released)."""
    resamples: int = 1000
    """Bootstrap samples of the videos for a confidence interval; 0: no interval."""
    confidence: float = 0.95
    """Share of the samples that an interval covers."""
    seed: int = 0
    """Seeds the samples."""

    def __post_init__(self) -> None:
        unit(self, "identity_iou", "background_iou", "clip_match_iou", "confidence")
        require(self.identity_iou > 0, "identity_iou must be > 0: an overlap of 0 shows nothing")
        matched = self.clip_match_iou > 0
        require(matched, "clip_match_iou must be > 0, or unrelated tracks are joined")
        require(
            self.background_iou < 0.5,
            f"background_iou must be below 0.5, got {self.background_iou}: from there on a track "
            "can count as found",
        )
        require(0 < self.confidence < 1, f"confidence must be < 1 and > 0, got {self.confidence}")
        not_negative(self, "resamples", "seed")
        at_most(self, 1_000_000, "resamples")
