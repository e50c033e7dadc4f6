"""Networks that take a clip of K frames: SeqFormer and IFC, and how clips become a video."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.clips.association import ClipAssociation
    from idol.clips.criterion import ClipCriterion
    from idol.clips.ifc import IFC
    from idol.clips.matching import ClipDetections, ClipMatcher
    from idol.clips.network import ClipLayers, ClipNetwork, ClipOutputs
    from idol.clips.seqformer import SeqFormer
    from idol.clips.video import predict, segment
    from idol.clips.weights import build, load

__all__ = [
    "ClipAssociation",
    "ClipCriterion",
    "ClipDetections",
    "ClipLayers",
    "ClipMatcher",
    "ClipNetwork",
    "ClipOutputs",
    "IFC",
    "SeqFormer",
    "build",
    "load",
    "predict",
    "segment",
]

__getattr__, __dir__ = attach(__name__)
