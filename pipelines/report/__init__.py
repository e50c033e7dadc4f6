"""What people look at: pages, charts, tables, films and the experiment log.

A file lives here if it shows numbers that other rooms have made.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.report.film import Film
    from pipelines.report.page import Report
    from pipelines.report.score_page import ScorePage

__all__ = ["Film", "Report", "ScorePage"]

__getattr__, __dir__ = attach(__name__)
