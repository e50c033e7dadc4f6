"""Why a score is what it is: oracle experiments, causes and shares of errors, intervals."""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from idol.analysis.causes import causes_of_video
    from idol.analysis.intervals import Interval
    from idol.analysis.oracles import OracleExperiments, match_oracles
    from idol.analysis.shares import ErrorShares

__all__ = [
    "ErrorShares",
    "Interval",
    "OracleExperiments",
    "causes_of_video",
    "match_oracles",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ErrorShares": "idol.analysis.shares",
        "Interval": "idol.analysis.intervals",
        "OracleExperiments": "idol.analysis.oracles",
        "causes_of_video": "idol.analysis.causes",
        "match_oracles": "idol.analysis.oracles",
    },
)
