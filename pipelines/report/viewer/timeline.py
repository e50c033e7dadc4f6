"""Which track shows which true instance when, and where identities switch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from idol.evaluation.identities import shown_instances
from idol.evaluation.overlaps import frame_overlap

Masks = Sequence[bytes | None]
"""(T,) compressed RLE counts of one track or instance, None where it is not visible."""


class Span(NamedTuple):
    """Frames first..last, both included; value: what is the same in all of them."""

    first: int
    last: int
    value: int


class Switch(NamedTuple):
    """From this frame on an instance (position) is shown by track `after`, before by `before`."""

    frame: int
    instance: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """How tracks (track_id) and true instances (position) of one video belong together.

    shown:    of each instance, in order of time, the frames in which a track shows it; value: which
    switches: as counted by idol.evaluation.identities.identity_switches
    partner:  track_id -> the instance that it shows longest, one to one
    """

    shown: tuple[tuple[Span, ...], ...]
    switches: tuple[Switch, ...]
    partner: Mapping[int, int]


def follow(
    tracks: Mapping[int, Masks], instances: Sequence[Masks], size: tuple[int, int]
) -> Timeline:
    """Compare tracks (track_id -> masks) and instances of one video of this (height, width).

    A track shows an instance in a frame under the rule of `shown_instances`: mask IoU of at least
    IDENTITY_IOU, one to one.
    """
    length = max((len(masks) for masks in [*tracks.values(), *instances]), default=0)
    seen: list[list[tuple[int, int]]] = [[] for _ in instances]  # (frame, track_id)
    last: dict[int, int] = {}
    switches = []
    for frame in range(length):
        here = [(n, counts) for n, masks in tracks.items() if (counts := masks[frame]) is not None]
        truth = [masks[frame] for masks in instances]
        overlap = frame_overlap([counts for _, counts in here], truth, size, frame)
        for row, g in shown_instances(overlap, range(len(here))):
            track_id = here[row][0]
            seen[g].append((frame, track_id))
            if last.setdefault(g, track_id) != track_id:
                switches.append(Switch(frame, g, last[g], track_id))
            last[g] = track_id
    return Timeline(tuple(map(spans, seen)), tuple(switches), _partners(seen))


def spans(values: Iterable[tuple[int, int]]) -> tuple[Span, ...]:
    """(frame, value) in order of time, as runs of frames in a row that have one value."""
    found: list[Span] = []
    for frame, value in values:
        if found and found[-1].last == frame - 1 and found[-1].value == value:
            found[-1] = found[-1]._replace(last=frame)
        else:
            found.append(Span(frame, frame, value))
    return tuple(found)


def presence(masks: Masks) -> tuple[Span, ...]:
    """Runs of frames in which there is a mask; value 0."""
    return spans((frame, 0) for frame, counts in enumerate(masks) if counts is not None)


def _partners(seen: Sequence[Sequence[tuple[int, int]]]) -> dict[int, int]:
    """track_id -> instance, one to one, so that partners share as many frames as possible."""
    frames = [Counter(track_id for _, track_id in rows) for rows in seen]
    ids = sorted({track_id for count in frames for track_id in count})
    shared = np.array([[count[track_id] for count in frames] for track_id in ids]).reshape(
        len(ids), len(frames)
    )
    pairs = zip(*linear_sum_assignment(shared, maximize=True), strict=True)
    return {ids[n]: int(g) for n, g in pairs if shared[n, g] > 0}
