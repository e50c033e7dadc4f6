"""Where videos come from: annotation files with their frames, and videos that nobody annotated.

A file here says where pixels and facts lie and reads them one at a time; it computes nothing.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.sources.annotations import Dataset, VideoRecord, combine, read
    from pipelines.sources.live import Source, open_source

__all__ = ["Dataset", "Source", "VideoRecord", "combine", "open_source", "read"]

__getattr__, __dir__ = attach(__name__)
