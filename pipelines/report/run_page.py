"""One page about what jobs have written: training, evaluations, a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.report import gallery
from pipelines.report import page as report_page
from pipelines.report.page import MetricSet, Report, SweepRow, VideoRow
from pipelines.report.strips import Strip
from pipelines.sources import annotations as annotation_files
from pipelines.sources.annotations import Dataset
from pipelines.storage import layout, manifest, stored
from pipelines.storage.reports import EvaluationReport, Selection
from pipelines.storage.stored import StoredDetections
from pipelines.storage.sweep_report import SweepReport

_PICTURES = 4  # videos shown in the report


def write(
    path: Path,
    *,
    title: str,
    training: Path | None = None,
    evaluations: Mapping[str, Path],
    swept: Path | None = None,
    commands: Mapping[str, str] | None = None,
) -> Path:
    """One self-contained page about a training run, evaluations and a sweep.

    training:    finished output of train.run
    evaluations: name of the set -> finished output of evaluate.run
    swept:       finished output of sweep.run
    Raises:
        ManifestError: one of them is not finished.
    """
    metrics: list[MetricSet] = []
    videos: list[VideoRow] = []
    strips: list[Strip] = []
    rejects: list[dict[str, Any]] = []
    for name, folder in evaluations.items():
        report = EvaluationReport.read(folder)
        metrics += metric_sets(name, report)
        videos += video_rows(report, name)
        shown = pictures(
            _dataset(report.selection),
            stored.read(folder / layout.DETECTIONS),
            folder / layout.TRACKS,
            report,
        )
        strips += [replace(strip, title=f"{name}, {strip.title}") for strip in shown]
        rejects += [{"set": name, **row} for row in report.rejects]
    facts: dict[str, Any] = {}
    config: Mapping[str, Any] = {}
    if training is not None:
        made = manifest.read(training, layout.TRAIN)
        config = made.config["config"]
        facts = {
            "training steps": made.extra["steps"],
            "workers": made.extra["workers"],
            "minutes of training": round(made.extra["seconds_training"] / 60, 1),
            "started from": made.config["weights"] or "random weights",
            "code": made.code_version,
        }
    return report_page.write(
        path,
        Report(
            title=title,
            facts=facts,
            config=config,
            metrics=metrics,
            curves=_curves(training) if training is not None else {},
            **_sweep_part(swept),
            videos=videos,
            strips=strips,
            rejects=rejects,
            commands=commands or {},
        ),
    )


def metric_sets(name: str, report: EvaluationReport) -> list[MetricSet]:
    """The metrics of an evaluation for the page; none where there was no truth."""
    if not report.metrics:
        return []
    return [
        MetricSet(
            name=name,
            stats=report.metrics,
            true_identities=report.true_identities["AP"],
            per_category={
                row.name: row.stats
                for row in report.per_category
                if row.stats["AP"] >= 0  # the others have no true instance here
            },
            note=f"{report.videos} videos",
        )
    ]


def video_rows(report: EvaluationReport, set_name: str = "") -> list[VideoRow]:
    """The videos of an evaluation for the page."""
    return [
        VideoRow(
            name=f"{row.video_id} {row.name}".strip(),
            ap=row.stats["AP"],
            tracks=row.tracks,
            truth=row.truth,
            switches=row.switches,
            set_name=set_name,
        )
        for row in report.per_video
    ]


def pictures(
    dataset: Dataset, source: StoredDetections, tracks: Path, report: EvaluationReport
) -> list[Strip]:
    """A few videos for the page, from the worst to the best; without truth, the first ones."""
    chosen = gallery.choose(report.per_video, _PICTURES)
    if not report.per_video:
        chosen = [video.video_id for video in source.videos[:_PICTURES]]
    notes = {
        row.video_id: f"AP {100 * row.stats['AP']:.1f}, {row.tracks} tracks for {row.truth} "
        f"instances, {row.switches} identity switches"
        for row in report.per_video
    }
    return gallery.strips(dataset, source, tracks, chosen, notes)


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Loss curves of a finished training directory: name → [(step, value), ...]."""
    manifest.read(path, layout.TRAIN)
    named: dict[str, list[tuple[int, float]]] = {}
    for step, values in json.loads((path / layout.LOSSES).read_text()):
        for name, value in values.items():
            named.setdefault(name, []).append((int(step), float(value)))
    return named


def sweep_part(found: SweepReport, name: str) -> dict[str, Any]:
    """What a page says of a sweep, as fields of Report. name: of the sweep in the page"""
    return {
        "sweep": sweep_rows(found),
        "sweep_metric": found.objective,
        "sweep_note": held_out_sentence(found),
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


def _curves(training: Path) -> dict[str, list[tuple[int, float]]]:
    """The total loss, then the losses of the last decoder layer; the others look like these."""
    named = curves(training)
    losses = [name for name in named if name.startswith("loss_") and not name[-1].isdigit()]
    return {name: named[name] for name in ("loss", *losses, "gradient_norm")}


def _dataset(selection: Selection) -> Dataset:
    return annotation_files.read(
        selection.annotations,
        selection.frames,
        video_ids=selection.videos,
        stride=selection.stride,
    )


def _sweep_part(swept: Path | None) -> dict[str, Any]:
    """The part of a finished sweep; nothing without one."""
    if swept is None:
        return {}
    manifest.read(swept, layout.SWEEP)
    found = SweepReport.from_dict(manifest.load_json(swept / layout.REPORT))
    return sweep_part(found, swept.name)
