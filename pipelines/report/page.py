"""Metrics, curves and clips as one self-contained HTML page: no network, no other files."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jinja2
from markupsafe import Markup

from pipelines.report import charts, sweep_charts
from pipelines.report.charts import Run
from pipelines.storage.paths import AnyPath, write_whole

if TYPE_CHECKING:  # with pyarrow, which the page of scores does not need
    from pipelines.report.viewer import Viewer

HEADLINE: Final = ("AP", "AP50", "AP75", "AR1", "AR10", "AP_so", "AP_mo", "AP_ho")
"""Metrics of the headline table in order; those that no set has are left out."""


@dataclass(frozen=True, slots=True)
class MetricSet:
    """The metrics of one set of videos, in [0, 1]; -1: no truth for it.

    stats:        as in idol.evaluation.Metrics.stats
    frame_oracle: AP of the same masks with true identities
    upper_bound:  the highest AP of any association of these masks
    per_category: category name -> stats
    note:         one line on what the set is
    """

    name: str
    stats: Mapping[str, float]
    frame_oracle: float | None = None
    upper_bound: float | None = None
    per_category: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        values = dict(self.stats) | {"upper_bound": self.upper_bound}
        for category, scores in self.per_category.items():
            values |= {f"{category} {key}": value for key, value in scores.items()}
        for key, value in values.items():
            if value is not None and value > 1.0 + 1e-9:
                raise ValueError(
                    f"{key} of set {self.name!r} must lie in [0, 1], got {value}. Is it a "
                    "percentage? Divide by 100."
                )

    @property
    def lost(self) -> float | None:
        """AP lost in association at most, where it is known."""
        score = _known(self.stats.get("AP"))
        best = _known(self.upper_bound)
        return None if score is None or best is None else best - score


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRow:
    """One trial of a sweep.

    score:   what was maximised, in [0, 1]
    default: whether these are the values used without a sweep
    stopped: after what it was stopped early, e.g. "12 videos"
    """

    params: Mapping[str, float | int | str | bool | None]
    score: float
    default: bool = False
    stopped: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that the page shows. Whatever is empty is left out."""

    title: str
    created: str = ""
    command: str = ""
    summary: str = ""
    """A sentence or two below the heading."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Short facts of the run in order, e.g. {"training": "3.1 min"}."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON types, folded away."""
    metrics: Sequence[MetricSet] = ()
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """Name -> (step, value) in order of steps."""
    sweep: Sequence[SweepRow] = ()
    sweep_name: str = ""
    """What was swept on which set."""
    sweep_metric: str = "AP"
    sweep_note: str = ""
    """A sentence below the best."""
    viewer: Viewer | None = None
    """All videos: their scores, timelines and clips."""
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each run was made from: run -> fact -> value."""
    differences: Sequence[tuple[str, Sequence[Any]]] = ()
    """Settings in which runs differ: name -> the value in each run of provenance."""
    rejects: Sequence[Mapping[str, Any]] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    """How to run it again: what it does -> command."""


def write(path: AnyPath, report: Report) -> AnyPath:
    """Write the page, whole or not at all. Raises: OSError: the folder cannot be written."""
    write_whole(path, render(report).encode())
    return path


def render(report: Report) -> str:
    """The page as one string of HTML."""
    shown = [
        key for key in HEADLINE if any(_known(s.stats.get(key)) is not None for s in report.metrics)
    ]
    categories = list(dict.fromkeys(name for s in report.metrics for name in s.per_category))
    # What was stopped early was scored on fewer videos: it stands below all others.
    sweep = sorted(
        report.sweep,
        key=lambda row: (row.stopped is not None, math.isnan(row.score), -row.score),
    )
    runs = [
        Run(row.params, 100 * row.score, best=row is sweep[0], default=row.default)
        for row in sweep
        if row.stopped is None
    ]
    shares = sweep_charts.importance(runs)
    text = template("report.html").render(
        report=report,
        shown=shown,
        with_upper_bound=any(s.upper_bound is not None for s in report.metrics),
        categories=categories,
        category_sets=[s for s in report.metrics if s.per_category],
        curves=[(name, charts.curve(points, name)) for name, points in report.curves.items()],
        sweep=sweep,
        sweep_default=next((row for row in sweep if row.default), None),
        sweep_params=list(dict.fromkeys(key for row in sweep for key in row.params)),
        sweep_charts=_sweep_charts(runs, report.sweep_metric),
        sweep_parallel=sweep_charts.parallel(runs, report.sweep_metric),
        sweep_importance=sweep_charts.bars(shares),
        sweep_unimportant=sweep_charts.unimportant(shares),
        viewer=report.viewer,
        viewer_json=in_script(report.viewer.data if report.viewer else {}),
        origins=list(dict.fromkeys(key for row in report.provenance.values() for key in row)),
        reject_counts=_reject_counts(report.rejects),
        reject_columns=list(dict.fromkeys(key for row in report.rejects for key in row)),
        config_text=json.dumps(report.config, indent=2, default=str) if report.config else "",
    )
    return text.strip() + "\n"


def _reject_counts(rejects: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What happens to the scores -> videos to which it happens; a video may have many faults."""
    videos = {
        (row.get("set"), row.get("video_id")): row.get("effect", "left out") for row in rejects
    }
    return Counter(videos.values())


def _sweep_charts(runs: Sequence[Run], metric: str) -> list[tuple[str, Markup]]:
    """One chart for each swept field that takes more than one value."""
    drawn = []
    for name in dict.fromkeys(key for run in runs for key in run.values):
        shown = [run for run in runs if name in run.values and math.isfinite(run.score)]
        if len({str(run.values[name]) for run in shown}) > 1:
            drawn.append((name, charts.sweep(shown, name, metric)))
    return drawn


def in_script(value: Any) -> Markup:
    """JSON that can stand in a script element: no name of the data can end it."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # nosec B704


def _known(value: float | None) -> float | None:
    """None for what the evaluators write where there is nothing to score: -1, or not a number."""
    return None if value is None or math.isnan(value) or value < 0 else value


def as_points(value: float | None) -> str:
    """A metric in [0, 1] as points of 100, one decimal."""
    known = _known(value)
    return "–" if known is None else f"{100 * known:.1f}"


@functools.cache
def template(name: str, **filters: Callable[..., str]) -> jinja2.Template:
    """A page of templates/, with filters of its own beside those that all pages share."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"points": as_points, "value": charts.cell, "known": _known, **filters}
    return environment.get_template(name)
