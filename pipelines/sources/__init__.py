"""Where the videos of a data set come from: annotation files with their frames.

A file here says where pixels and facts lie and reads them one at a time; it computes nothing.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.sources.annotations import Dataset, VideoRecord, combine, read

__all__ = ["Dataset", "VideoRecord", "combine", "read"]

__getattr__, __dir__ = attach(__name__)
