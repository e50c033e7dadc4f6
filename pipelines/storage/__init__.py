"""What lies in a stage's directory: tables, manifests, and who may write them.

A file lives here if more than one stage reads or writes what it describes.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.storage.claims import Output, prepare_output
    from pipelines.storage.manifest import Manifest
    from pipelines.storage.reports import EvaluationReport
    from pipelines.storage.stored import StoredDetections
    from pipelines.storage.sweep_report import SweepReport, Trial

__all__ = [
    "EvaluationReport",
    "Manifest",
    "Output",
    "StoredDetections",
    "SweepReport",
    "Trial",
    "prepare_output",
]

__getattr__, __dir__ = attach(__name__)
