"""Clips of videos for a page: frames, masks and timelines of found and true identities.

A file lives here if it makes what the player of the report (`templates/viewer.js`) reads.
"""

from pipelines.report.viewer.collection import Budget, Evaluated, Viewer, collect

__all__ = ["Budget", "Evaluated", "Viewer", "collect"]
