"""The finished trials of a sweep, one line of JSON each: a killed sweep goes on from them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from pipelines.storage.sweep_report import Trial


class Ledger:
    """A file of trials that is only appended to, so that a kill loses no finished trial."""

    def __init__(self, path: Path, input_hash: str) -> None:
        """input_hash: names what the sweep reads; lines about another input are ignored."""
        self.path = path
        self._input_hash = input_hash

    def append(self, trial: Trial) -> None:
        """Add a finished trial; it is on the disk when this returns."""
        line = {"input": self._input_hash, **asdict(trial)}
        with self.path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
            # After a line that a kill has cut short, the next trial starts on a new line.
            start = b"\n" if end and file.read(1) != b"\n" else b""
            file.write(start + json.dumps(line, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Trial]:
        """The trials of this input, in the order in which they were added."""
        trials: list[Trial] = []
        for text in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # cut short by a kill
            if line["input"] == self._input_hash:
                trials.append(Trial.from_dict(line))
        return trials

    def furthest(self) -> list[Trial]:
        """The trial with the largest budget of each configuration, in the order of the search."""
        found: dict[str, Trial] = {}
        for trial in self.read():
            if trial.hash not in found or trial.budget > found[trial.hash].budget:
                found[trial.hash] = trial
        return sorted(found.values(), key=lambda trial: trial.number)
