"""The stages, prepare to evaluate: each reads finished directories and writes one of its own.

A file is a stage (`run` writes its directory) or one noun of a stage.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.stages import detect, evaluate, pairs, track, train

__all__ = ["detect", "evaluate", "pairs", "track", "train"]

__getattr__, __dir__ = attach(__name__)
