"""Why a metric is what it is: oracle experiments, causes and shares of errors, intervals."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.analysis.causes import causes_of_video
    from idol.analysis.intervals import Interval
    from idol.analysis.oracles import OracleExperiments, match_oracles
    from idol.analysis.score_files import Analyses, FileMetrics, ScoredFiles
    from idol.analysis.shares import ErrorShares

__all__ = [
    "Analyses",
    "ErrorShares",
    "FileMetrics",
    "Interval",
    "OracleExperiments",
    "ScoredFiles",
    "causes_of_video",
    "match_oracles",
]

__getattr__, __dir__ = attach(__name__)
