"""One page about what jobs have written: training, evaluations, a sweep; each with all videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines import formats
from pipelines.errors import intact
from pipelines.report import page as report_page
from pipelines.report import viewer
from pipelines.report.page import MetricSet, Report, SweepRow
from pipelines.report.viewer import Budget, Evaluated
from pipelines.storage import layout, manifest, stored
from pipelines.storage.paths import AnyPath
from pipelines.storage.reports import EvaluationReport
from pipelines.storage.sweep_report import SweepReport


def write(
    path: AnyPath,
    *,
    title: str,
    training: AnyPath | None = None,
    evaluations: Mapping[str, AnyPath],
    swept: AnyPath | None = None,
    commands: Mapping[str, str] | None = None,
    budget: Budget | None = None,
) -> AnyPath:
    """One self-contained page about outputs of train.run, evaluate.run and sweep.run.

    evaluations: name of the run -> output of evaluate.run; runs on the same videos and frames can
                 be looked at side by side
    budget:      how large clips may become
    Raises:
        ManifestError: one of them is not finished.
    """
    runs = [opened(name, folder) for name, folder in evaluations.items()]
    page = Report(
        title=title,
        commands=commands or {},
        **evaluation_part(runs, budget),
    )
    if training is not None:
        made = manifest.read(training, layout.TRAIN)
        with intact(training / manifest.MANIFEST):
            facts = {
                "training steps": made.extra["steps"],
                "workers": made.extra["workers"],
                "minutes of training": round(made.extra["seconds_training"] / 60, 1),
                "started from": made.config["weights"] or "random weights",
                "code": made.code_version,
            }
            config = made.config["config"]
        page = replace(page, facts=facts, config=config, curves=_curves(training))
    if swept is not None:
        table = manifest.read_json(swept / layout.REPORT, layout.SWEEP)
        with intact(swept / layout.REPORT):
            found = SweepReport.from_dict(table)
        page = replace(page, **sweep_part(found, swept.name))
    return report_page.write(path, page)


def opened(name: str, folder: AnyPath) -> Evaluated:
    """A finished evaluation with its data set. Raises: ManifestError: it is not finished."""
    report = EvaluationReport.read(folder)
    chosen = report.selection
    dataset = formats.dataset(
        chosen.annotations, chosen.frames, video_ids=chosen.videos, stride=chosen.stride
    )
    source, tracks = stored.read(folder / layout.DETECTIONS), folder / layout.TRACKS
    return Evaluated(name=name, report=report, dataset=dataset, source=source, tracks=tracks)


def evaluation_part(runs: Sequence[Evaluated], budget: Budget | None = None) -> dict[str, Any]:
    """What a page says of evaluations, as fields of Report."""
    several = len(runs) > 1
    settings = [flat(run.report.config) for run in runs]
    names = list(dict.fromkeys(name for values in settings for name in values))
    differing = [(name, [values.get(name) for values in settings]) for name in names]
    return {
        "metrics": [found for run in runs for found in metric_sets(run.name, run.report)],
        "viewer": viewer.collect(runs, budget),
        "rejects": [
            {"set": run.name, **row} if several else dict(row)
            for run in runs
            for row in run.report.rejects
        ],
        "provenance": {run.name: _provenance(run) for run in runs},
        "differences": [(name, row) for name, row in differing if any(v != row[0] for v in row)],
    }


def _provenance(run: Evaluated) -> dict[str, Any]:
    """Where the numbers of a run come from."""
    report, made = run.report, run.source.manifest
    return {
        "labels": ", ".join(report.sources),
        "videos, frames": f"{report.videos}, {report.frames}",
        "every n-th frame": report.selection.stride,
        "hash of the labels": report.selection.input_hash[:16],
        "frame files": made.frames,
        "hash of weights and data": made.input_hash[:16],
        "code": made.code_version,
        "configuration": report.config.get("name", ""),
        "seconds of detection": made.seconds,
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under one name each: section.field."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return found


def metric_sets(name: str, report: EvaluationReport) -> list[MetricSet]:
    """The metrics of an evaluation for the page; none where there was no truth."""
    if not report.metrics:
        return []
    # A category without AP has no true instance here.
    shown = {name: stats for name, stats in report.by_category().items() if stats["AP"] >= 0}
    return [
        MetricSet(
            name,
            report.metrics,
            report.frame_oracle.get("AP"),
            report.upper_bound.get("AP"),
            shown,
            f"{report.videos} videos",
        )
    ]


def curves(path: AnyPath) -> dict[str, list[tuple[int, float]]]:
    """Loss curves of a finished training directory: name → [(step, value), ...]."""
    named: dict[str, list[tuple[int, float]]] = {}
    points = manifest.read_json(path / layout.LOSSES, layout.TRAIN)
    with intact(path / layout.LOSSES):
        for step, values in points:
            for name, value in values.items():
                named.setdefault(name, []).append((int(step), float(value)))
    return named


def sweep_part(found: SweepReport, name: str) -> dict[str, Any]:
    """What a page says of a sweep of this name, as fields of Report."""
    return {
        "sweep": sweep_rows(found),
        "sweep_metric": found.objective,
        "sweep_note": " ".join([*filter(None, [held_out_sentence(found)]), *found.notes]),
        "sweep_name": name,
    }


def sweep_rows(found: SweepReport) -> list[SweepRow]:
    """The trials of a sweep for the page."""
    return [
        SweepRow(
            # A list of numbers is one value of its field: as text it can be put on an axis.
            params={
                name: json.dumps(value) if isinstance(value, list) else value
                for name, value in trial.values.items()
            },
            score=trial.value,
            default=trial.number == 0,
            stopped=f"{trial.budget} {found.unit}" if trial.budget < found.budget else None,
        )
        for trial in found.trials
    ]


def held_out_sentence(found: SweepReport) -> str:
    """What the choice is worth on videos that had no say in it, in words; or nothing."""
    held_out = found.held_out
    if held_out is None:
        return ""
    text = (
        f"Held out: with each of {len(held_out.folds)} folds scored by what was best on the "
        f"others, {found.objective} is {100 * held_out.value:.1f}, against "
        f"{100 * held_out.base:.1f} without the sweep"
    )
    gap = held_out.difference
    if held_out.interval and gap.interval:
        low, high = held_out.interval
        text += (
            f" ({held_out.confidence:.0%} interval over videos {100 * low:.1f} to "
            f"{100 * high:.1f}; the difference is {100 * gap.value:+.1f}, from "
            f"{100 * gap.interval[0]:+.1f} to {100 * gap.interval[1]:+.1f})"
        )
    return text + "."


def _curves(training: AnyPath) -> dict[str, list[tuple[int, float]]]:
    """The total loss, then the losses of the last decoder layer; the others look like these."""
    named = curves(training)
    losses = [name for name in named if name.startswith("loss_") and not name[-1].isdigit()]
    with intact(training / layout.LOSSES):
        return {name: named[name] for name in ("loss", *losses, "gradient_norm")}
