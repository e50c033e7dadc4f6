"""Networks that take a clip of K frames: SeqFormer and IFC, and how clips become a video."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.clips.ifc import IFC
    from idol.clips.network import ClipLayers, ClipNetwork, ClipOutputs
    from idol.clips.seqformer import SeqFormer
    from idol.clips.weights import build, load

__all__ = ["IFC", "ClipLayers", "ClipNetwork", "ClipOutputs", "SeqFormer", "build", "load"]

__getattr__, __dir__ = attach(__name__)
