"""Trackers side by side on the same stored detections: ours and box trackers of a library.

python -m benchmarks.association_stored --evaluations crowded=runs/crowded

Of every finished evaluation the detections are tracked and scored by each tracker, in this process.
Intervals are 95 % over draws of videos; differences are to `released` on the same draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine
from idol.analysis import intervals
from idol.arrays import Floats
from idol.config import AnalysisConfig
from pipelines.storage import layout, stored
from pipelines.sweep import objective, tracker_sweep
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.tracker_sweep import TrackerSweep

METRICS = ("AP", "HOTA", "IDF1")
BASE = "released"
OURS = (BASE, "paper", "multi_cue", "robust")
ADAPTERS = ("Sort", "ByteTrack", "OcSort", "BotSort", "CBiou")


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", nargs="+", required=True, help="NAME=OUT of jobs.evaluate")
    parser.add_argument("--set", nargs="*", default=[], help="fields of every tracker")
    parser.add_argument("--trackers", nargs="*", help="further ones, as of --tracker")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.association_stored")))
    print(f"| videos | tracker | {' | '.join(METRICS)} | AP − {BASE} | HOTA − {BASE} |")
    print("|---" * (len(METRICS) + 4) + "|")
    for named in options.evaluations:
        name, _, folder = named.partition("=")
        for row in rows(Path(folder), options.set, options.trackers or ()):
            print(f"| {name} | {row}")


def rows(evaluated: Path, overrides: Sequence[str], more: Sequence[str]) -> list[str]:
    """A line of the table for each tracker."""
    source = stored.read(evaluated / layout.DETECTIONS)
    names = [*OURS, *(f"idol.tracker.adapters:{name}" for name in ADAPTERS), *more]
    found: list[str] = []
    base: dict[str, tuple[Floats, float]] = {}
    for name in names:
        tracker = tracker_sweep.base_config(evaluated, name, overrides)
        wanted = TrackerSweep(
            evaluated=evaluated, base=tracker, space={}, search=SearchConfig(objective="HOTA")
        )
        trials = tracker_sweep.workload(wanted, source)
        scored = trials.score(trials.load(), trials.order, tracker)
        values = objective.stats(*scored)
        analysis = AnalysisConfig()
        weights = intervals.draws(len(trials.order), analysis)
        cells = []
        for metric in METRICS:
            goal = objective.parse(metric, occlusion=False)
            draws = goal.of_draws(*scored, weights)
            base.setdefault(metric, (draws, values[metric]))
            cells.append(
                points(values[metric], intervals.interval(draws, values[metric], analysis))
            )
        for metric in METRICS[:2]:
            goal = objective.parse(metric, occlusion=False)
            draws, value = goal.of_draws(*scored, weights), values[metric]
            before, old = base[metric]
            gap = intervals.difference(draws, before, value - old, analysis)
            cells.append("–" if name == BASE else points(gap.value, gap.interval, "+"))
        found.append(" | ".join([name.rpartition(":")[2], *cells]) + " |")
    return found


def points(value: float, interval: intervals.Interval | None, sign: str = "") -> str:
    """A value and its interval in percent."""
    text = f"{100 * value:{sign}.1f}"
    if interval is not None:
        text += f" ({100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f})"
    return text


if __name__ == "__main__":
    main()
