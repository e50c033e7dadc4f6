"""How a job ends: a table for people, and one line of JSON that stays short."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from idol.files import whole_file

MOST_BYTES: Final = 4000
"""Of the last line: what a terminal, a log and a pipe take without harm."""
WHOLE: Final = "whole"
"""Key of the file that has everything, where the line does not."""
_HEADLINE: Final = ("AP", "AP50", "AP75", "AR1", "AR10", "HOTA", "IDF1", "out", "lost")
"""What is kept longest of nested objects."""
_PERCENT: Final = frozenset({"AP", "AR", "HOTA", "DetA", "AssA", "LocA", "IDF1", "MOTSA", "sMOTSA"})


def last_line(line: Mapping[str, Any], job: str) -> str:
    """The object as JSON of at most MOST_BYTES where its own scalars allow it.

    What is too long loses nested objects, the deepest first, and names the file that has it all:
    line["whole"] where the job has written one, else a file in the temporary folder.
    """
    content = {key: value for key, value in line.items() if key != WHOLE}
    text = json.dumps(content, sort_keys=True)
    if len(text.encode()) <= MOST_BYTES:
        return text
    whole = line.get(WHOLE) or str(_written(text, job))
    for depth in (3, 2, 1, 0):
        short = json.dumps({**_cut(content, depth), WHOLE: whole}, sort_keys=True)
        if len(short.encode()) <= MOST_BYTES:
            break
    return short


def _written(text: str, job: str) -> Path:
    """A file of the temporary folder; the same content has the same name."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"idol-{job}-{digest}.json"
    with whole_file(path) as file:
        file.write_text(text + "\n")
    return path


def _cut(value: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Without the lists and objects below this depth; of objects at it the headline remains."""
    out: dict[str, Any] = {}
    for key, part in value.items():
        if isinstance(part, Mapping):
            if depth > 0:
                out[key] = _cut(part, depth - 1)
            elif kept := {k: part[k] for k in _HEADLINE if k in part and not _nested(part[k])}:
                out[key] = kept
        elif not isinstance(part, list | tuple) or len(json.dumps(part)) < 100:
            out[key] = part
    return out


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def table(line: Mapping[str, Any]) -> str:
    """What a job says of itself: its scores side by side, then its other facts, one a line."""
    rows = dict(_scored("", line))
    columns = [name for name in _HEADLINE if any(name in row for row in rows.values())]
    columns = [name for name in columns if _base(name) in _PERCENT]
    lines = []
    if columns:
        wide = max(map(len, rows))
        lines.append(" " * wide + "".join(f"{name:>8}" for name in columns))
        for title, row in rows.items():
            lines.append(f"{title:<{wide}}" + "".join(f"{_points(row.get(c)):>8}" for c in columns))
    facts = {
        key: value
        for key, value in line.items()
        if key != WHOLE and not _nested(value) and _base(key) not in _PERCENT and value is not None
    }
    wide = max(map(len, facts), default=0)
    lines += [f"{key:<{wide}}  {_short(value)}" for key, value in facts.items()]
    return "\n".join(lines)


def _scored(name: str, value: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, object) of each object of sets and checkpoints that has scores; "" is the top."""
    found = [(name, value)] if "AP" in value else []
    for key in ("sets", "checkpoints"):
        for inner, part in value.get(key, {}).items():
            found += _scored(f"{name}, {inner}" if name else inner, part)
    return found


def _base(name: str) -> str:
    """The metric without its level: AP of AP50, APs and AP_ho."""
    for base in ("AP", "AR"):
        if name.startswith(base) and (len(name) == 2 or name[2] in "_sml0123456789"):
            return base
    return name


def _points(value: Any) -> str:
    if not isinstance(value, int | float) or value < 0:
        return "–"
    return f"{100 * value:.1f}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
