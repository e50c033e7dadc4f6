"""What a sweep has found: configurations, the trials of its ledger, and its report.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipelines.storage import manifest
from pipelines.storage.paths import AnyPath, RemotePath, write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """Values of the swept fields.

    number: in the order of the search; 0 is the base, the configuration without a sweep
    hash:   names the configuration by every field of it, also those that are not swept
    values: swept field -> value; {} for the base
    """

    number: int
    hash: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial(Configuration):
    """A configuration tried, with its outcome.

    budget: videos that it was scored on, or steps that it was trained for
    value:  of the objective
    folds:  the objective on all videos but those of each fold; [] where there are no folds
    """

    budget: int
    value: float
    metrics: dict[str, float]
    folds: list[float] = field(default_factory=list)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Trial:
        """The inverse of asdict; keys that are no field are ignored.

        In the order of the ledger, so that a page does not depend on where a trial came from.
        """
        found = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
        ordered = {name: dict(sorted(dict(found[name]).items())) for name in ("values", "metrics")}
        return cls(**{**found, **ordered})


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A configuration that was left out, and why."""

    values: dict[str, Any]
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutFold:
    """One fold: its number of videos, and the values that were best on the other folds.

    value, base: of the objective on the fold's videos, with these values and without the sweep
    """

    videos: int
    value: float
    base: float
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutDifference:
    """The held-out value minus that of the base on the same draws of videos.

    interval: [low, high]
    better:   share of the draws in which it is above 0
    """

    value: float
    interval: list[float] | None
    better: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Cross-validation: the value of choosing, on videos that had no say in the choice.

    value:      of the objective, each fold scored with what was best on the others
    base:       of the objective without the sweep
    confidence: of the intervals [low, high] over draws of videos; None where no draw has truth
    """

    value: float
    base: float
    folds: list[HeldOutFold]
    confidence: float
    interval: list[float] | None
    base_interval: list[float] | None
    difference: HeldOutDifference


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepReport:
    """report.json of a sweep.

    budget: of a trial that was not stopped early
    unit:   of budgets: videos or steps
    best:   index of the best trial
    trials: the trial with the largest budget of each configuration, in the order of the search;
            the base is the first, listed with its own values of the swept fields
    notes:  what a reader has to know: fields without effect, why something is not there
    """

    objective: str
    budget: int
    unit: str
    best: int
    trials: list[Trial]
    held_out: HeldOut | None
    failed: list[Failure]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; trials without their folds."""
        names = ("number", "hash", "budget", "value", "metrics", "values")
        trials = [{name: getattr(trial, name) for name in names} for trial in self.trials]
        return asdict(self) | {"trials": trials}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SweepReport:
        """The inverse of to_dict."""
        held_out = plain["held_out"]
        if held_out is not None:
            folds = [HeldOutFold(**fold) for fold in held_out["folds"]]
            difference = HeldOutDifference(**held_out["difference"])
            held_out = HeldOut(**{**held_out, "folds": folds, "difference": difference})
        trials = [Trial.from_dict(trial) for trial in plain["trials"]]
        failed = [Failure(**failure) for failure in plain["failed"]]
        return cls(**{**plain, "trials": trials, "failed": failed, "held_out": held_out})


class Ledger:
    """Finished trials, a line of JSON each, only appended to: a killed sweep goes on from them.

    Object storage cannot append: there each line is an object of its own beside `path`.
    """

    def __init__(self, path: AnyPath, input_hash: str) -> None:
        """input_hash: names what the sweep reads; lines about another input are ignored."""
        self.path = path
        self._input_hash = input_hash

    def append(self, trial: Trial) -> None:
        """Add a finished trial; it is on the disk when this returns."""
        line: dict[str, Any] = {"input": self._input_hash, **asdict(trial)}
        line["checksum"] = manifest.hash_value(line)
        if isinstance(self.path, RemotePath):
            place = f"{len(self._objects()):06d}-{trial.hash[:8]}"
            name = f"{self.path.stem}-{place}{self.path.suffix}"
            write_whole(self.path.parent / name, json.dumps(line, sort_keys=True).encode())
            return
        try:
            with self.path.open("a+b") as file:
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                # After a line that a kill has cut short, the next trial starts on a new line.
                start = b"\n" if end and file.read(1) != b"\n" else b""
                file.write(start + json.dumps(line, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # of a full disk it does not name the file
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def read(self) -> list[Trial]:
        """The trials of this input as they were added; those of damaged lines are tried again."""
        trials: list[Trial] = []
        for text in self._lines():
            try:
                line = json.loads(text)
                stated = line.pop("checksum")
            except (ValueError, KeyError, AttributeError, TypeError):
                continue  # cut short by a kill
            if stated == manifest.hash_value(line) and line["input"] == self._input_hash:
                trials.append(Trial.from_dict(line))
        return trials

    def _objects(self) -> list[AnyPath]:
        return sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))

    def _lines(self) -> list[bytes]:
        if isinstance(self.path, RemotePath):
            return [file.read_bytes() for file in self._objects()]
        return self.path.read_bytes().splitlines() if self.path.exists() else []


def furthest(trials: Iterable[Trial]) -> list[Trial]:
    """The trial with the largest budget of each configuration, in the order of the search."""
    found: dict[str, Trial] = {}
    for trial in sorted(trials, key=lambda trial: -trial.budget):
        found.setdefault(trial.hash, trial)
    return sorted(found.values(), key=lambda trial: trial.number)
