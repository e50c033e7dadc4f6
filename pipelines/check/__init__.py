"""A data set by the rules of all later jobs, before any of them.

A file here counts and compares what readers and stages say; only `suspicions` has rules of its own.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.check.dataset import Request, run

__all__ = ["Request", "run"]

__getattr__, __dir__ = attach(__name__)
