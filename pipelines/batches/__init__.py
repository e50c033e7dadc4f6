"""From the directory that prepare wrote to batches of a training worker. Without Ray.

A file is the loader, one form of what is stored, or the order of one form.
"""

from typing import TYPE_CHECKING

from idol.lazy import attach

if TYPE_CHECKING:
    from pipelines.batches import loader

__all__ = ["loader"]

__getattr__, __dir__ = attach(__name__)
