"""One source after the other, frame by frame, to a film and files that people use, without Ray.

A file lives here if it turns the instances of frames, as they come, into something to keep or see.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.stream.following import StreamConfig, Summary, prepare, run
    from pipelines.stream.places import FILM, RESULTS, ROWS, TABLE

__all__ = ["FILM", "RESULTS", "ROWS", "TABLE", "StreamConfig", "Summary", "prepare", "run"]

__getattr__, __dir__ = attach(__name__)
