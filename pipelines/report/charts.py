"""Small charts as inline SVG that takes its colours from the page, light or dark.

A script of the page (`templates/tips.html`, 3 kB) tells the values under the pointer and enlarges a
chart. Vega-Lite would add 0.83 MB to every page, Plotly 3.5 MB or more, Vega also a permission to
evaluate text as code; and figures of the documentation would need a browser to be made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from markupsafe import Markup

from idol.arrays import Floats

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 30
_LABELS: Final = 6  # of a histogram: more would run into one another
_MOST_POINTS: Final = 240  # points a line is thinned to: more than the pixels would show


class Run(NamedTuple):
    """One configuration of a sweep: field -> value, what is maximised, and what it is."""

    values: Mapping[str, Any]
    score: float
    best: bool = False
    default: bool = False

    @property
    def kind(self) -> str:
        """Its class in the page's style."""
        return "best" if self.best else "default" if self.default else "trial"


class Line(NamedTuple):
    """One line of a chart of several."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    """Place in the page's palette, which has PALETTE colours; further ones come round again."""
    style: Literal["solid", "dashed", "dotted"] = "solid"


PALETTE: Final = 6
"""Colours of lines: classes c0, c1, ... in the page's style."""


class _Axes(NamedTuple):
    """From data to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: float) -> float:
        low, high = self.x
        return _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def up(self, y: float) -> float:
        low, high = self.y
        return _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def curve(points: Sequence[tuple[float, float]], name: str) -> Markup:
    """A value over training steps: every value faint, their running mean strong.

    points: (step, value) in order of steps; values that are not finite are left out
    """
    data = _finite(points)
    if not len(data):
        return _nothing(name)
    mean = _running_mean(data[:, 1])
    # The first values of a training are far above all others; they may leave the picture.
    top = max(np.percentile(data[:, 1], 98), mean[len(mean) // 20 :].max())
    axes = _Axes(_span(data[:, 0], 0.0), _span(np.append(np.minimum(data[:, 1], top), top), 0.06))
    x_ticks = [(tick, _short(tick)) for tick in _ticks(*axes.x, 5)]
    body = [
        _line(axes, _thinned(data), "raw", "value"),
        _line(axes, _thinned(np.column_stack([data[:, 0], mean])), "mean", "running mean"),
    ]
    if len(data) == 1:
        body.append(_dot(axes.across(data[0, 0]), axes.up(data[0, 1]), "best", _short(data[0, 1])))
    label = f"{name}: from {_short(data[0, 1])} to {_short(mean[-1])} (running mean)"
    return _frame(axes, x_ticks, "step", label, body)


def sweep(runs: Sequence[Run], field: str, metric: str = "AP") -> Markup:
    """The metric of all runs over one field; a line joins the best of each value.

    Numbers stand on a scale; words, and numbers mixed with words, side by side.
    """
    best: dict[Any, float] = {}
    for run in runs:
        best[run.values[field]] = max(run.score, best.get(run.values[field], -math.inf))
    numeric = all(map(is_number, best))
    values = sorted(best) if numeric else sorted(best, key=str)
    # Side by side also where numbers are few: 1, 3, 10, 30 would crowd at the left of a scale.
    place = {value: float(i) for i, value in enumerate(values)}
    heights = _span(np.array([run.score for run in runs]), 0.12)
    if numeric and len(values) > 8:
        place = {value: float(value) for value in values}
        axes = _Axes(_span(np.array(values, np.float64), 0.04), heights)
        x_ticks = [(tick, _short(tick)) for tick in _ticks(*axes.x, 5)]
    else:
        axes = _Axes((-0.5, len(values) - 0.5), heights)
        x_ticks = [(place[v], _short(v) if numeric else str(v)) for v in values]
    line = np.array([(place[v], best[v]) for v in values])
    # Where few runs share a value, as with random ones, the line would be noise.
    joined = numeric and (len(values) <= 8 or 4 * len(values) <= len(runs))
    body = [_line(axes, line, "mean")] if joined else []
    # The marked ones last, on top of the others.
    for run in sorted(runs, key=lambda run: (run.best, run.default)):
        words = ", ".join(f"{name} {cell(value)}" for name, value in run.values.items())
        title = f"{metric} {run.score:.1f}: {words}"
        x, y = axes.across(place[run.values[field]]), axes.up(run.score)
        body.append(_dot(x, y, run.kind, title))
        if run.best and run.default:
            body.append(_dot(x, y, "default", title))
    top = max(runs, key=lambda run: run.score)
    label = f"{metric} over {field}: best {top.score:.1f} at {_short(top.values[field])}"
    return _frame(axes, x_ticks, "", label, body)


def lines(
    drawn: Sequence[Line],
    name: str,
    *,
    x_label: str,
    y_span: tuple[float, float] | None = None,
    x_names: Sequence[str] | None = None,
    legend: bool = False,
) -> Markup:
    """Several lines on the same axes.

    drawn:   their points in order of x; points that are not finite are left out
    name:    for those who cannot see it
    y_span:  lowest and highest value shown; None: as the points need it
    x_names: names of the places 0, 1, ... that x then stands for; every point gets a dot
    legend:  write the lines' names below, where the page does not
    """
    data = [_finite(line.points) for line in drawn]
    everything = np.concatenate([np.zeros((0, 2)), *data])
    if not len(everything):
        return _nothing(name)
    y_axis = _span(everything[:, 1], 0.08) if y_span is None else y_span
    if x_names is None:
        axes = _Axes(_span(everything[:, 0], 0.0), y_axis)
        x_ticks = [(tick, _short(tick)) for tick in _ticks(*axes.x, 5)]
    else:
        axes = _Axes((-0.25, len(x_names) - 0.75), y_axis)
        x_ticks = [(float(place), name) for place, name in enumerate(x_names)]
    body, names = [], []
    for n, (line, points) in enumerate(zip(drawn, data, strict=True)):
        color = f"c{line.color % PALETTE}"
        body.append(_line(axes, _thinned(points), f"{color} {line.style}", line.name))
        if x_names is not None and line.style == "solid":
            for x, y in points.tolist():
                title = f"{line.name}: {_short(y)}"
                body.append(_dot(axes.across(x), axes.up(y), color, title))
        y = _HEIGHT + 15 * n + 8
        mark = Markup('<polyline class="{} {}" points="{},{y} {},{y}"/>')
        names.append(mark.format(color, line.style, _LEFT, _LEFT + 28, y=y - 3.5))
        names.append(text(_LEFT + 36, y, line.name, "start"))
    if legend:
        body += names
    below = 15 * len(drawn) if legend else 0
    return _frame(axes, x_ticks, x_label, name, body, below, scaled=x_names is None)


def histogram(counts: Sequence[tuple[str, int]], name: str) -> Markup:
    """How many there are of each, as bars side by side in the given order."""
    most = max((count for _, count in counts), default=0)
    if not most:
        return _nothing(name)
    axes = _Axes((-0.5, len(counts) - 0.5), (0.0, 1.05 * most))
    rect = '<rect class="share" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
    bar = Markup(rect + "<title>{}: {}</title></rect>")  # nosec B704
    body = []
    for place, (label, count) in enumerate(counts):
        left, right, top = axes.across(place - 0.4), axes.across(place + 0.4), axes.up(count)
        body.append(bar.format(left, top, right - left, axes.up(0) - top, label, count))
    every = -(-len(counts) // _LABELS)
    x_ticks = [(float(place), counts[place][0]) for place in range(0, len(counts), every)]
    return _frame(axes, x_ticks, "", name, body)


def _frame(
    axes: _Axes,
    x_ticks: Sequence[tuple[float, str]],
    x_label: str,
    description: str,
    body: Sequence[Markup],
    below: int = 0,
    scaled: bool = True,
) -> Markup:
    """scaled: x is a number, and not the place of a name."""
    parts = []
    grid = Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for tick in _ticks(*axes.y, 4):
        y = axes.up(tick)
        parts.append(grid.format(_LEFT, _WIDTH - _RIGHT, y=y))
        parts.append(text(_LEFT - 6, y + 3.5, _short(tick), "end"))
    for x, words in x_ticks:
        parts.append(text(axes.across(x), _HEIGHT - _BOTTOM + 14, words, "middle"))
    if x_label:
        parts.append(text(_WIDTH - _RIGHT, _HEIGHT - 3, x_label, "end"))
    # From which the page's script reads values back: without, it reads none.
    read: dict[str, str] = {}
    if x_label and scaled:
        frame = (_LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM)
        read = {
            "data-frame": " ".join(map(str, frame)),
            "data-axes": " ".join(f"{value:.9g}" for value in (*axes.x, *axes.y)),
            "data-x": x_label,
        }
    return svg((_WIDTH, _HEIGHT + below), description, [*parts, *body], read=read)


def svg(
    size: tuple[int, int],
    description: str,
    body: Sequence[Markup],
    kind: str = "chart",
    read: Mapping[str, str] | None = None,
) -> Markup:
    """A whole picture, (width, height); description: for those who cannot see it; read: further
    attributes."""
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"')
    more = Markup("").join(Markup(' {}="{}"').format(*pair) for pair in (read or {}).items())
    opened = head.format(kind, *size, description) + more + Markup(">")
    return opened + Markup("").join(body) + Markup("</svg>")


def _line(axes: _Axes, data: Floats, kind: str, name: str = "") -> Markup:
    low, high = axes.y
    path = " ".join(
        f"{axes.across(x):.1f},{axes.up(min(max(y, low), high)):.1f}" for x, y in data.tolist()
    )
    if not name:
        return Markup('<polyline class="{}" points="{}"/>').format(kind, path)
    line = Markup('<polyline class="{}" data-name="{}" points="{}"/>')
    return line.format(kind, name, path)


def _dot(x: float, y: float, kind: str, title: str) -> Markup:
    radius = {"best": 5.0, "default": 7.5}.get(kind, 3.0)
    circle = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}">').format(kind, x, y, radius)
    return circle + Markup("<title>{}</title></circle>").format(title)


def text(x: float, y: float, words: str, anchor: str) -> Markup:
    """Words at a place; anchor: start, middle or end of them stands there."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, words
    )


def _finite(points: Sequence[tuple[float, float]]) -> Floats:
    """(n, 2) the points with a finite value."""
    return np.array([(x, y) for x, y in points if math.isfinite(y)], np.float64).reshape(-1, 2)


def _nothing(name: str) -> Markup:
    return Markup('<p class="muted">{}: no finite value</p>').format(name)


def _running_mean(values: Floats) -> Floats:
    """Mean over a centred window of a twentieth of the values, shorter at the ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _thinned(data: Floats) -> Floats:
    """At most _MOST_POINTS of the rows, evenly spread, the last one included."""
    if len(data) <= _MOST_POINTS:
        return data
    kept: Floats = data[np.linspace(0, len(data) - 1, _MOST_POINTS).round().astype(int)]
    return kept


def _span(values: Floats, margin: float) -> tuple[float, float]:
    """Smallest and largest value with a margin; never empty."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About count round numbers within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: Any) -> str:
    """A number as few characters as tell it apart on an axis."""
    if not is_number(value):
        return str(value)
    return f"{value / 1000:.4g}k" if abs(value) >= 10_000 else f"{value + 0.0:.4g}"


def cell(value: Any) -> str:
    """A table's cell: None is a dash, a number is short."""
    if value is None or value == "":
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_number(value: Any) -> bool:
    """Whether this can stand on a scale."""
    return isinstance(value, int | float) and not isinstance(value, bool)
