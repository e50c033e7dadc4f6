"""Label formats of others ↔ YouTube-VIS JSON: one file a format, and what joins and writes them.

A reader gives `Labels`: the JSON, where its frames lie, and what was repaired, dropped or merged.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.formats.joining import Joined, join, split
    from pipelines.formats.labels import Labels
    from pipelines.formats.recognition import FORMATS, dataset, read
    from pipelines.formats.writing import WRITERS, write

__all__ = ["FORMATS", "Joined", "Labels", "WRITERS", "dataset", "join", "read", "split", "write"]

__getattr__, __dir__ = attach(__name__)
