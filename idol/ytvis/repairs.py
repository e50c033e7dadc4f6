"""Harmless faults of annotation JSON: values brought to their proper form, every repair counted."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IDS = (
    "annotation ids that are 0, missing or repeated, numbered internally (the official evaluator "
    "counts id 0 as never found)"
)
UNSEEN = "annotations without any mask, left out (the official evaluator counts them as missed)"
ORPHANS = "annotations of videos that are not there, left out"
CROWD = "odd ways to write iscrowd, taken as 0 or 1"
AREAS = "stated areas that are no number from 0 for every frame, measured from the masks"
SLIVERS = "polygons of fewer than three points, left out"
FLAT = "polygons without a list around them"
PAIRS = "polygons written as [x, y] pairs, flattened"
DECIMALS = "whole numbers written as decimals"
TWICE = "videos listed twice in the same words, taken once"
NAMELESS = "categories without a name, named by their id"
SAME_NAME = "categories with the name of another, numbered as in 'car (2)'"
TEXT = "names with characters that cannot be written, replaced by '?'"
FOLDERS = "folders of images with track ids but no video_id, each taken as one video"
BACKSLASHES = "frame paths with backslashes, taken as '/'"

MAX_ID = 2**53
"""The largest whole number that every JSON reader and table holds without loss."""
_MAX_AREA = 1e10  # the official evaluator ignores instances with more
_REACH = 16  # longer sides of the frame that a polygon may leave it by


class Repaired(NamedTuple):
    """How often a kind of fault was repaired, and where first."""

    times: int
    first: str


def written(text: str) -> str:
    """Text as UTF-8 can hold it: what is no character becomes '?'."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class Repairs(dict[str, Repaired]):
    """Kind of fault -> how often it was repaired. Methods normalise a value found at `where`."""

    def add(self, kind: str, where: str, count: int = 1) -> None:
        """Count a repair."""
        before = self.get(kind, Repaired(0, where))
        self[kind] = Repaired(before.times + count, before.first)

    def __str__(self) -> str:
        return "; ".join(f"{n} {kind} (first: {first})" for kind, (n, first) in self.items())

    def whole(self, value: Any, where: str) -> int | None:
        """A whole number of at most 53 bits; None if it is none."""
        if value.__class__ is int and -MAX_ID <= value <= MAX_ID:  # as nearly all are
            return value
        if isinstance(value, float) and value.is_integer():
            self.add(DECIMALS, where)
        elif not isinstance(value, Integral) or isinstance(value, bool):
            return None
        return int(value) if abs(value) <= MAX_ID else None

    def text(self, value: str, where: str) -> str:
        """Text that can be written as UTF-8: JSON may hold halves of characters."""
        if (clean := written(value)) != value:
            self.add(TEXT, where)
        return clean

    def crowd(self, value: Any, where: str) -> bool:
        """Whether iscrowd is 1. Raises: ValueError: it is neither 0 nor 1 in any form."""
        if value.__class__ is int and value in (0, 1):
            return bool(value)
        if value not in (0, 1, "0", "1", None):  # True equals 1, and so does 1.0
            raise ValueError(f"{where} has iscrowd {value!r}, not 0 or 1")
        self.add(CROWD, where)
        return value in (1, "1")

    def areas(self, stated: Any, length: int, where: str) -> NDArray[np.float64] | None:
        """(length,) areas in pixels, 0 for null; None if they cannot be those of the masks."""
        values = as_areas(stated)
        fits = values is not None and len(values) == length and values.min() >= 0  # NaN is not
        if values is not None and fits and 0 < values.max() <= _MAX_AREA:
            return values
        self.add(AREAS, where)
        return None

    def polygons(self, rings: list[Any], size: tuple[int, int], where: str) -> list[Any]:
        """One frame's polygons as lists x0, y0, x1, y1, ... of at least three points, or none.

        rings:  also without a list around one polygon, or with points as [x, y] pairs; what is
                none of this stays as it is
        Raises: ValueError: a point is further off than 16 longer sides of the frame.
        """
        if rings and _is_flat(rings):
            self.add(FLAT, where)
            rings = [rings]
        elif len(rings) > 2 and _is_pairs(rings):  # as polygons they would have a single point
            rings = [rings]
        kept = []
        for ring in rings:
            if isinstance(ring, list) and ring and _is_pairs(ring):
                self.add(PAIRS, where)
                ring = [value for pair in ring for value in pair]
            if isinstance(ring, list) and len(ring) < 6 and _is_flat(ring):
                self.add(SLIVERS, where)
            else:
                kept.append(ring)
        # pycocotools allocates by edge length: one absurd point would take all memory.
        reach = _REACH * max(size)
        values = (value for ring in kept if isinstance(ring, list) for value in ring)
        if any(isinstance(value, int | float) and abs(value) > reach for value in values):
            raise ValueError(f"a polygon reaches beyond {reach} pixels")
        return kept


def as_areas(stated: Any) -> NDArray[np.float64] | None:
    """A list of numbers and nulls, which are 0, as an array; None for anything else."""
    try:
        return np.array([0.0 if a is None else float(a) for a in stated])
    except (TypeError, ValueError, OverflowError):
        return None


def _is_flat(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _is_pairs(points: list[Any]) -> bool:
    return all(isinstance(p, list) and len(p) == 2 and _is_flat(p) for p in points)
