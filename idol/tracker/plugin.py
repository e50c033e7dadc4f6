"""Another tracker behind the same interface: `--tracker package.module:Class`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any, Protocol

import numpy as np

from idol.arrays import Ints
from idol.config import TrackerConfig
from idol.structures import FrameDetections


class AnyTracker(Protocol):
    """What a plug-in is: a class that is called with a TrackerConfig, once for each video.

    Its attribute `defaults`, where it has one, are fields of TrackerConfig that it wants otherwise.
    """

    def update(self, frame: FrameDetections) -> Any:
        """Identities of the rows of the next frame: N whole numbers, -1 for none.

        Every frame comes, also those without rows, with the masks where they are there.
        """


def load(name: str) -> Any:
    """The class of "package.module:Class".

    Raises: ValueError: it cannot be imported, or is no tracker.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the tracker {name} cannot be imported ({error}). It is package.module:Class, of a "
            "module that python finds here and on every machine of a cluster."
        ) from error
    if not callable(getattr(found, "update", None)):
        raise ValueError(f"{name} is no tracker: it has no method update(frame) -> identities")
    return found


class PlugIn:
    """A plug-in in the place of Tracker, whose answers are checked."""

    def __init__(
        self, config: TrackerConfig, admitted: Callable[[FrameDetections, TrackerConfig], Ints]
    ) -> None:
        """admitted: which rows of a frame enter the tracker"""
        self.config, self._admitted = config, admitted
        self._tracker: AnyTracker = load(config.plugin)(config)
        self._known: dict[int, None] = {}

    @property
    def alive(self) -> Collection[int]:
        """Track ids that can still be continued: all, where the plug-in has no `alive` itself."""
        found: Collection[int] = getattr(self._tracker, "alive", self._known.keys())
        return found

    def follow(self, frame: FrameDetections) -> tuple[list[int], list[int]]:
        """The admitted rows of the next frame, and their track ids.

        Raises: ValueError: the plug-in gives another number of identities than rows.
        """
        rows = self._admitted(frame, self.config)
        part = frame if len(rows) == len(frame) else _rows(frame, rows)
        given = self._tracker.update(part)
        array = given.numpy(force=True) if hasattr(given, "numpy") else np.asarray(given)
        if array.shape != (len(rows),) or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(
                f"{self.config.plugin} must give a whole number for each of {len(rows)} rows of "
                f"frame {frame.frame_index}, got {array.dtype} of shape {array.shape}"
            )
        ids = [int(i) for i in array]
        self._known |= dict.fromkeys(i for i in ids if i >= 0)
        return rows.tolist(), ids


def _rows(frame: FrameDetections, rows: Ints) -> FrameDetections:
    return FrameDetections(
        frame.frame_index,
        scores=frame.scores[rows],
        class_scores=frame.class_scores[rows],
        embeddings=frame.embeddings[rows],
        overlaps=frame.overlaps[rows][:, rows],
        boxes=frame.boxes[rows],
        masks=tuple(frame.masks[row] for row in rows.tolist()) if frame.masks else (),
        time=frame.time,
    )
