"""What jobs.check found: as JSON, as a table of text, and as one self-contained HTML page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipelines.report import charts
from pipelines.report.page import template
from pipelines.report.strips import Strip
from pipelines.storage.paths import AnyPath, write_whole

FILES: Final = {"report": "check.json", "page": "check.html"}
"""What `write` makes, by the name that the job prints it under."""

Effect = Literal["refused", "left out", "not scored", "repaired", "to look at"]
"""refused: a later job ends with an error; left out: the video, or what is named, is not used;
not scored: a metric does not count it; to look at: jobs take it as it is."""
EFFECTS: Final[tuple[Effect, ...]] = ("refused", "left out", "not scored", "repaired", "to look at")

_ROWS: Final = 20  # categories of the table of text
_PLACES: Final = 20  # of one finding on the page


@dataclass(slots=True)
class Finding:
    """One kind of fault.

    places: where, as far as it is known; of repairs the first place
    """

    effect: Effect
    kind: str
    times: int = 0
    places: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """All that was found.

    annotations, frames: the file, and the folder that its frame paths are relative to
    counts:     name -> number, or numbers by name
    categories: {category_id, name, tracks, videos, frames} of each
    histograms: title -> (what, how many) from left to right
    findings:   by effect, the gravest first
    """

    annotations: str
    frames: str
    counts: Mapping[str, Any]
    categories: Sequence[Mapping[str, Any]]
    histograms: Mapping[str, Sequence[tuple[str, int]]]
    findings: Sequence[Finding]

    @property
    def refused(self) -> bool:
        """Whether a later job ends with an error."""
        return any(finding.effect == "refused" for finding in self.findings)

    def times(self) -> dict[str, int]:
        """Effect -> how often, of those that there are."""
        totals = {e: sum(f.times for f in self.findings if f.effect == e) for e in EFFECTS}
        return {effect: times for effect, times in totals.items() if times}


def write(out: AnyPath, report: CheckReport, strips: Sequence[Strip]) -> None:
    """Write FILES to a folder. Raises: OSError: it cannot be written."""
    content = {"checked": report.annotations, **dataclasses.asdict(report)}
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / FILES["report"], (json.dumps(content, indent=1) + "\n").encode())
    write_whole(out / FILES["page"], render(report, strips).encode())


def render(report: CheckReport, strips: Sequence[Strip] = ()) -> str:
    """The page as one string of HTML."""
    drawn = [(title, charts.histogram(rows, title)) for title, rows in report.histograms.items()]
    text = template("check.html").render(
        report=report,
        facts=_facts(report.counts),
        charts=drawn,
        strips=[strip.embedded() for strip in strips],
        shown=_PLACES,
    )
    return text.strip() + "\n"


def table(report: CheckReport) -> str:
    """All counts and findings as text, for the terminal."""
    lines = [f"{name:<26}{fact}" for name, fact in _facts(report.counts)]
    rows = sorted(report.categories, key=lambda row: -row["tracks"])
    if rows:
        lines.append(f"\n{'category':<28}{'tracks':>8}{'videos':>8}{'frames':>8}")
        for row in rows[:_ROWS]:
            numbers = "".join(f"{row[key]:>8}" for key in ("tracks", "videos", "frames"))
            lines.append(f"{row['name'][:27]:<28}{numbers}")
        lines += [f"... and {len(rows) - _ROWS} more"] if len(rows) > _ROWS else []
    lines.append("\nnothing is wrong" if not report.findings else "")
    for finding in report.findings:
        first = f" (first: {finding.places[0]})" if finding.places else ""
        lines.append(f"{finding.effect:<11}{finding.times:>7} {finding.kind}{first}")
    return "\n".join(lines)


def _facts(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name -> one line of text."""
    facts = []
    for name, value in counts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {charts.cell(number)}" for key, number in value.items())
        if value != "":
            facts.append((name.replace("_", " "), charts.cell(value)))
    return facts
