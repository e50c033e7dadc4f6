"""What a sweep has finished, one JSON line each: what a killed sweep goes on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Ledger:
    """Finished configurations, only ever appended to.

    A killed sweep loses what was being computed, and nothing before; Tune's own state may be torn
    by a kill.
    """

    def __init__(self, path: Path, input_hash: str) -> None:
        """input_hash: names what was read; lines about anything else are passed over."""
        self.path = path
        self._input_hash = input_hash

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a finished row, and see it on the disk."""
        line = {"input": self._input_hash, **row}
        with self.path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
            # A line that a kill has torn stays alone on its line.
            start = b"\n" if end and file.read(1) != b"\n" else b""
            file.write(start + json.dumps(line, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """The rows of this input, in the order in which they were added."""
        rows: list[dict[str, Any]] = []
        if not self.path.exists():
            return rows
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # the line in which the last run was killed
            if line.pop("input") == self._input_hash:
                rows.append(line)
        return rows
