"""What a search asks of what is swept: a tracker on stored detections, or a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from pipelines.storage.paths import AnyPath
from pipelines.storage.sweep_report import Configuration, HeldOut, Trial
from pipelines.sweep.objective import Objective


class Workload(Protocol):
    """How configurations are tried; sent to every process.

    goal:     what is maximised
    rungs:    videos, or steps of training, that a configuration passes through; the last is all
    unit:     of rungs: videos or steps
    cpus:     that one trial holds
    reads:    files and folders that trials read
    place:    folder for checkpoints of unfinished trials, on storage that all machines see; None:
              a trial has no state worth keeping
    identify: the hash of the configuration with these values, {} for the base; ValueError where
              they do not go together
    load:     what all trials read, once
    measure:  try a configuration at every rung above `after`; the base only at the last. A trial
              has the hash of the configuration really used
    held_out: cross-validation over trials with the whole budget; None: there is none
    """

    @property
    def goal(self) -> Objective: ...
    @property
    def rungs(self) -> Sequence[int]: ...
    @property
    def unit(self) -> str: ...
    @property
    def cpus(self) -> float: ...
    @property
    def reads(self) -> Sequence[AnyPath]: ...
    @property
    def place(self) -> AnyPath | None: ...
    def identify(self, values: Mapping[str, Any]) -> str: ...
    def load(self) -> Any: ...
    def measure(self, loaded: Any, of: Configuration, after: int) -> Iterator[Trial]: ...
    def held_out(self, full: Sequence[Trial]) -> HeldOut | None: ...
