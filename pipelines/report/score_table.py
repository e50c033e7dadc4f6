"""Metrics of one or several results files as a table of text, in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from idol.analysis.score_files import ScoredFiles
from pipelines.report import score_page
from pipelines.report.page import as_points


def table(scores: ScoredFiles) -> str:
    """All that was found, for the terminal."""
    files = scores.files
    width = max(22, *(len(found.name) + 2 for found in files))
    # A column begins with its name, and its numbers below that, with or without an interval.
    lines = [" " * 22 + "".join(f"{found.name:<{width}}" for found in files)]
    for name in dict.fromkeys(name for found in files for name in found.metrics.stats):
        cells = []
        for found in files:
            value, interval = found.metrics.stats[name], found.intervals.get(name)
            around = f" ({as_points(interval.low)}–{as_points(interval.high)})" if interval else ""
            cells.append(f"{as_points(value):>6}{around:<14}")
        lines.append(f"{name:<20}" + "".join(f"{cell:<{width}}" for cell in cells))
    tracking = {
        name: [score_page.tracking(found.shown_tracking.get(name)) for found in files]
        for name in dict.fromkeys(name for found in files for name in found.shown_tracking)
    }
    lines += _rows("Tracking", tracking, width)
    per_class = {
        scores.truth.categories[c]: [found.metrics.per_class[c]["AP"] for found in files]
        for c in files[0].metrics.categories
    }
    shown = {name: row for name, row in per_class.items() if max(row) >= 0}
    lines += _rows("AP by class", _percent(shown), width)
    lines += _rows("How much is association?", _percent(_oracles(scores)), width)
    shares = [found.errors.regained for found in files if found.errors is not None]
    regained = {cause: [share[cause] for share in shares] for cause in score_page.MEANINGS}
    lines += _rows("AP regained without", _percent(regained) if shares else {}, width)
    for row in scores.differences:
        gap = row.found
        lines.append(
            f"\n{row.first} – {row.second}: AP {100 * gap.value:+.1f} "
            f"({100 * gap.interval.low:+.1f} to {100 * gap.interval.high:+.1f}), better in "
            f"{100 * gap.better:.0f} % of draws"
        )
    return "\n".join(line.rstrip() for line in lines)


def _oracles(scores: ScoredFiles) -> dict[str, list[float]]:
    """Experiment -> AP of every file; none where they were not asked for."""
    experiments = [found.oracles for found in scores.files if found.oracles is not None]
    if not experiments:
        return {}
    rows = {"predicted": [done.predicted for done in experiments]}
    for length in sorted(experiments[0].clips, reverse=True):
        rows[f"clips of {length}"] = [done.clips[length] for done in experiments]
    rows["frame oracle"] = [done.frame for done in experiments]
    rows["upper bound"] = [done.bound for done in experiments]
    values = {name: [metrics.stats["AP"] for metrics in row] for name, row in rows.items()}
    return values | {"lost in association": [done.lost for done in experiments]}


def _rows(title: str, rows: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """A heading and one line for each row; nothing without rows."""
    if not rows:
        return []
    lines = [f"\n{title}"]
    for name, texts in rows.items():
        cells = (f"{text:>6}{'':14}" for text in texts)
        lines.append(f"{name:<20}" + "".join(f"{cell:<{width}}" for cell in cells))
    return lines


def _percent(rows: Mapping[str, Sequence[float]]) -> dict[str, list[str]]:
    return {name: [as_points(value) for value in values] for name, values in rows.items()}
