"""Searches for better numbers: spaces, the search, its workers, and what is swept with them.

A file that tries many configurations to find the best lives here; one that tries a single
configuration is a stage.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.sweep.search import SearchConfig
    from pipelines.sweep.space import Choices, Range
    from pipelines.sweep.tracker_sweep import TrackerSweep
    from pipelines.sweep.training_sweep import TrainingSweep

__all__ = ["Choices", "Range", "SearchConfig", "TrackerSweep", "TrainingSweep"]

__getattr__, __dir__ = attach(__name__)
