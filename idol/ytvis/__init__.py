"""The JSON of YouTube-VIS and OVIS: truth, results, submission. No other room knows it."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.ytvis.index import ResultsIndex
    from idol.ytvis.results import to_ytvis
    from idol.ytvis.submission import InvalidResults
    from idol.ytvis.truth import Truth, VideoTruth

__all__ = ["InvalidResults", "ResultsIndex", "Truth", "VideoTruth", "to_ytvis"]

__getattr__, __dir__ = attach(__name__)
