"""Charts of a whole sweep: every configuration as a line over its fields, and what mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipelines.report.charts import Run, is_number, svg, text

_WIDTH, _HEIGHT = 760, 250
_SIDE, _TOP, _BOTTOM = 54, 34, 26
_LINES: Final = 300  # of the best and the worst alike; more would be one grey field
_BINS: Final = 6  # of a field of numbers
_BAR: Final = 22  # height of one bar with its gap
_DRAWS: Final = 200  # of runs, for intervals


def parallel(runs: Sequence[Run], metric: str) -> Markup:
    """Every configuration as a line that crosses one axis per field, and the score's at the right.

    Colour is the score, the best and the default stand out; constant fields are left out.
    """
    runs = [run for run in runs if math.isfinite(run.score)]
    fields = _varying(runs)
    if not fields:
        return Markup("")
    axes = [_Axis.of(field, [run.values.get(field) for run in runs]) for field in fields]
    axes.append(_Axis.of(metric, [run.score for run in runs]))
    gap = (_WIDTH - 2 * _SIDE) / (len(axes) - 1)
    across = [_SIDE + n * gap for n in range(len(axes))]
    parts = []
    # The share is by rank, 1 for the best: one outlier must not make all others equal.
    ranked = sorted(runs, key=lambda run: run.score)
    shown = [(run, n / max(1, len(runs) - 1)) for n, run in enumerate(ranked)]
    if len(shown) > _LINES:
        shown = [shown[round(i)] for i in np.linspace(0, len(shown) - 1, _LINES)]
        shown += [(run, 1.0) for run in runs if run.best or run.default]
    # The marked ones last, on top of the others.
    for run, share in sorted(shown, key=lambda pair: (pair[0].best, pair[0].default, pair[1])):
        row = [run.values.get(field) for field in fields] + [run.score]
        heights = [axis.up(value) for axis, value in zip(axes, row, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, heights, strict=True))
        title = f"{metric} {_short(run.score)}: " + ", ".join(
            f"{field} {_short(run.values.get(field))}" for field in fields
        )
        line = '<polyline class="run {}" style="--share: {:.0f}%" points="{}"><title>{}</title>'
        parts.append(Markup(line + "</polyline>").format(run.kind, 100 * share, points, title))  # nosec B704
    for n, (x, axis) in enumerate(zip(across, axes, strict=True)):
        line = Markup('<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>')
        parts.append(line.format(_TOP, _HEIGHT - _BOTTOM, x=x))
        # Names take turns in height, so that neighbours do not run into one another.
        name_at = (2.0, "start") if n == 0 else (x, "middle")
        parts.append(text(name_at[0], 12 if n % 2 else 26, axis.name, name_at[1]))
        for y, words in axis.ticks():
            parts.append(text(x + 4, y + 3.5, words, "start"))
    label = f"{len(runs)} configurations over {', '.join(fields)} and {metric}"
    return svg((_WIDTH, _HEIGHT), label, parts, "chart wide")


class Share(NamedTuple):
    """What a field explains of the score's variance, with a 95 % interval over draws of runs."""

    field: str
    share: float
    low: float
    high: float


def importance(runs: Sequence[Run]) -> list[Share]:
    """Share of the score's variance that each field explains by itself, the largest first.

    The correlation ratio over the values of a field (numbers in up to six groups of about equal
    size), less what as many random groups would explain; so a field without any effect is near 0.
    Where a search looked more closely at good values, it tells of what was tried, not of the space.
    The interval is the spread of the same over draws of the runs, around the share.
    """
    runs = [run for run in runs if math.isfinite(run.score)]
    scores = np.array([run.score for run in runs])
    rng = np.random.default_rng(0)
    chosen = [rng.integers(len(runs), size=len(runs)) for _ in range(_DRAWS if runs else 0)]
    found = []
    for field in _varying(runs):
        groups = _groups([run.values.get(field) for run in runs])
        share = _epsilon(groups, scores)
        if share is None:
            continue
        drawn = [_epsilon(groups[rows], scores[rows]) for rows in chosen]
        values = np.array([value for value in drawn if value is not None] or [share])
        low, high = share + np.quantile(values - values.mean(), [0.025, 0.975])
        found.append(Share(field, max(0.0, share), max(0.0, low), min(1.0, max(0.0, high))))
    return sorted(found, key=lambda each: -each.share)


def unimportant(shares: Sequence[Share]) -> str:
    """Which fields explain nothing beyond chance, as a sentence; "" where none is one."""
    names = ", ".join(each.field for each in shares if each.low <= 0)
    return f"No effect beyond chance: {names}." if names else ""


def _epsilon(groups: NDArray[np.intp], scores: NDArray[np.float64]) -> float | None:
    """Epsilon squared of scores (n,) in groups (n,): the expectation of pure chance is taken off.

    None where there is nothing to explain, or as many groups as scores.
    """
    sizes = np.bincount(groups)
    count, centred = int((sizes > 0).sum()), scores - scores.mean()
    spread = float((centred**2).sum())
    if spread <= 0 or len(scores) <= count:
        return None
    sums = np.bincount(groups, centred)
    between = float((sums[sizes > 0] ** 2 / sizes[sizes > 0]).sum())
    return (between - (count - 1) * (spread - between) / (len(scores) - count)) / spread


def bars(shares: Sequence[Share]) -> Markup:
    """Shares in [0, 1] as horizontal bars with their names, and a line from low to high."""
    if not shares:
        return Markup("")
    parts = []
    bar = Markup('<rect class="share" x="140" y="{}" width="{:.1f}" height="{}"/>')
    line = Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>')
    for n, (name, share, low, high) in enumerate(shares):
        y = _BAR * n + 4
        parts.append(text(134, y + 12, name, "end"))
        parts.append(bar.format(y, 1 + 145 * share, _BAR - 7))
        parts.append(line.format(141 + 145 * low, 141 + 145 * high, y=y + 7.5))
        words = f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        parts.append(text(146 + 145 * max(share, high), y + 12, words, "start"))
    label = ", ".join(f"{each.field} {100 * each.share:.0f} %" for each in shares)
    return svg((400, _BAR * len(shares) + 6), label, parts)


@dataclass(frozen=True, slots=True)
class _Axis:
    """From values of a field to pixels: numbers on a scale, anything else side by side."""

    name: str
    places: dict[Any, float]
    low: float
    high: float

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> _Axis:
        if all(is_number(v) for v in values):
            numbers = [float(v) for v in values]
            return cls(name, {}, min(numbers), max(numbers))
        words = sorted({str(v) for v in values})
        return cls(name, {word: float(n) for n, word in enumerate(words)}, 0.0, len(words) - 1.0)

    def up(self, value: Any) -> float:
        place = self.places[str(value)] if self.places else float(value)
        share = (place - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP - 8)

    def ticks(self) -> list[tuple[float, str]]:
        if self.places:
            return [(self.up(word), word) for word in self.places]
        if self.low == self.high:
            return [(self.up(self.low), _short(self.low))]
        steps = (self.low, (self.low + self.high) / 2, self.high)
        return [(self.up(v), _short(v)) for v in steps]


def _varying(runs: Sequence[Run]) -> list[str]:
    fields = dict.fromkeys(field for run in runs for field in run.values)
    return [f for f in fields if len({str(run.values.get(f)) for run in runs}) > 1]


def _groups(values: Sequence[Any]) -> NDArray[np.intp]:
    """A whole number per value: equal values alike, many numbers in a few groups."""
    keys = [str(v) for v in values]
    if len(set(keys)) > _BINS and all(is_number(v) for v in values):
        numbers = np.array([float(v) for v in values])
        edges = np.quantile(numbers, np.linspace(0, 1, _BINS + 1)[1:-1])
        return np.asarray(np.searchsorted(edges, numbers, side="right"))
    return np.unique(keys, return_inverse=True)[1]


def _short(value: Any) -> str:
    return f"{value:.3g}" if is_number(value) else str(value)
