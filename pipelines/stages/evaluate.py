"""Detect, track, score and report: a checkpoint and a dataset in, metrics and pictures out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idol.addresses import is_remote, shown
from idol.config import Config, to_dict
from idol.config.categories import same
from idol.network.layers import Network
from idol.network.model import IDOL
from idol.ytvis.truth import Truth
from idol.ytvis.videos import Reject
from pipelines import cluster, configuration, formats
from pipelines.report import experiment_log, page, run_page
from pipelines.report.viewer import Evaluated
from pipelines.sources.annotations import Dataset
from pipelines.stages import clip_results, detect, shard_plan, stored_metrics, track
from pipelines.stages.reject_limit import check_rejects, tell_rejects
from pipelines.stages.stored_metrics import StoredMetrics
from pipelines.stages.track_ahead import TrackAhead
from pipelines.storage import claims, manifest, paths, stored, tables
from pipelines.storage.layout import DETECTIONS, EVALUATE, PAGE, REPORT, RESULTS, SUBMISSION, TRACKS
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath, write_whole
from pipelines.storage.reports import CategoryMetrics, EvaluationReport, Selection
from pipelines.storage.stored import StoredDetections
from pipelines.training import networks

FILES = {
    "results": RESULTS,
    "submission": SUBMISSION,
    "report": REPORT,
    "page": PAGE,
    "detections": DETECTIONS,
}
"""What a finished directory holds, by the name that the job prints it under."""

_log = logging.getLogger(__name__)

_AHEAD = "ahead"  # what was tracked before detection had ended, until it is taken over


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is evaluated: all that decides the outcome.

    annotations: labels in any known format, or videos without any
    checkpoint:  see idol.load
    preset:      configuration of a released checkpoint, which carries none
    overrides:   "section.field=value" on the checkpoint's configuration
    tracker:     see configuration.tracker_config; None: the checkpoint's
    frames, video_ids, stride: as of formats.dataset
    """

    annotations: str | Path
    checkpoint: str | Path
    preset: str | None = None
    overrides: Sequence[str] = ()
    tracker: str | Path | None = None
    frames: str | None = None
    video_ids: Collection[int] | None = None
    stride: int = 1

    def read(self) -> tuple[Dataset, Network, Config, Truth | None]:
        """All that the stages need; the truth is None where the annotations have none.

        Raises:
            ValueError: the checkpoint has other categories, or an override is bad.
            PipelineError: the annotations cannot be used, or a threshold is below the score floor.
        """
        dataset = formats.dataset(
            self.annotations, self.frames, video_ids=self.video_ids, stride=self.stride
        )
        with paths.fetched(str(self.checkpoint)) as source:
            model = networks.load(source, self.preset)
        if not dataset.categories:  # nobody labelled these videos: they have the checkpoint's
            ids = model.config.category_ids or range(1, model.config.model.num_classes + 1)
            names = model.config.categories or map(str, ids)
            dataset = replace(dataset, categories=dict(zip(ids, names, strict=True)))
        config = with_categories(model.config, dataset)
        config = configuration.changed(config, self.overrides, self.tracker)
        return dataset, model, config, dataset.truth()

    def selection(self, dataset: Dataset) -> Selection:
        """What report.json says of it."""
        return Selection(
            annotations=_absolute(str(self.annotations)),
            frames=None if self.frames is None else _absolute(self.frames),
            videos=None if self.video_ids is None else sorted(self.video_ids),
            stride=self.stride,
            input_hash=dataset.input_hash,
        )


def run(
    request: Request,
    out: AnyPath,
    *,
    actors: cluster.Pool | int | None = None,
    gpu: bool | None = None,
    overwrite: bool = False,
    reject_limit: float | None = None,
    log_to: AnyPath | None = None,
    log: bool = True,
) -> Manifest:
    """Evaluate a checkpoint on a dataset; a killed run goes on where it was by the same call.

    out:         gets detections/, tracks/, results.json, report.json, report.html
    actors, gpu: see detect.run
    overwrite:   replace another run's output
    reject_limit: see check_rejects
    log_to:      folder of the MLflow file; None: out
    log:         False: no MLflow run: its file has one writer, and this is another process
    returns:     the manifest; its extra holds the metrics
    Raises: ValueError, PipelineError: as Request.read and the stages.
    """
    # The truth is read before anything is computed, so that its faults are found at once.
    dataset, model, config, truth = request.read()
    check_rejects(dataset, dataset.rejects, reject_limit)
    claimed = _claim(config)
    content = detect.input_hash(dataset, model)
    output = claims.prepare_output(
        out, EVALUATE, claimed, content, frames=dataset.frames, overwrite=overwrite
    )
    if output.finished is not None:
        tell_rejects(dataset, out, EvaluationReport.read(out).rejects)
        return output.finished
    with contextlib.ExitStack() as stack:
        opened = None
        if gpu and not cluster.own():  # said at once: to open a log takes seconds
            stack.enter_context(cluster.session())
            detect.granted(actors, gpu, len(dataset.videos))
        if log:
            # Before the work, so that a log that cannot be opened is found at once.
            run_of = experiment_log.run(log_to or out, f"evaluate {out.name}", claimed)
            opened = stack.enter_context(run_of)
        if isinstance(model, IDOL):
            how = (actors, gpu, overwrite, reject_limit)
            tracked = _detect_and_track(dataset, model, out, config, *how)
            report = _report(request, dataset, truth, config, out)
        else:
            tracked = clip_results.run(
                dataset, model, out / TRACKS, config, actors=actors, gpu=gpu,
                overwrite=overwrite, reject_limit=reject_limit,
            )  # fmt: skip
            report = _clip_report(request, dataset, truth, config, out)
        if opened:
            opened.metrics(report.flat())
            files = (out / REPORT, out / PAGE, out / RESULTS)
            opened.artifacts(*(file for file in files if file.exists()))
        faults = tables.read_rejects(out / (DETECTIONS if isinstance(model, IDOL) else TRACKS))
        done = output.finish(rows=tracked.rows, rejects=faults, extra={"metrics": report.metrics})
        tell_rejects(dataset, out, report.rejects)
        return done


def _report(
    request: Request, dataset: Dataset, truth: Truth | None, config: Config, out: AnyPath
) -> EvaluationReport:
    """Score what was tracked, and write results, report and page to out."""
    source = stored.read(out / DETECTIONS)
    for name in (RESULTS, SUBMISSION):
        write_whole(out / name, (out / TRACKS / name).read_bytes())
    found = None if truth is None else stored_metrics.measure(truth, source, config.tracker)
    faults = tables.read_rejects(source.path)
    rejects = _with_effect(faults, truth)
    report = summarise(found, dataset, source, config, rejects, request.selection(dataset))
    report.write(out)
    opened = Evaluated(
        name=out.name, report=report, dataset=dataset, source=source, tracks=out / TRACKS
    )
    page.write(
        out / PAGE,
        page.Report(
            title=f"Evaluation of {Path(shown(str(request.checkpoint))).name}",
            summary=f"{report.videos} videos, {report.frames} frames of "
            f"{', '.join(dataset.sources)}",
            config=report.config,
            **run_page.evaluation_part([opened]),
        ),
    )
    return report


def _clip_report(
    request: Request, dataset: Dataset, truth: Truth | None, config: Config, out: AnyPath
) -> EvaluationReport:
    """Score what a network of clips found, and write results and report to out; there is no page,
    and no row per video: both are of stored detections, which it has none of (see jobs.score)."""
    for name in (RESULTS, SUBMISSION):
        write_whole(out / name, (out / TRACKS / name).read_bytes())
    found = None if truth is None else clip_results.measure(truth, out)
    faults = tables.read_rejects(out / TRACKS)
    left = {fault.video_id for fault in faults}
    names = dict(zip(config.category_ids, config.categories, strict=True))
    oracles = None if found is None else found.oracles
    report = EvaluationReport(
        videos=sum(video.video_id not in left for video in dataset.videos),
        frames=sum(len(v.frames) for v in dataset.videos if v.video_id not in left),
        sources=dataset.sources,
        rejects=_with_effect(faults, truth),
        config=_claim(config),
        selection=request.selection(dataset),
        metrics={} if found is None else found.metrics.stats,
        frame_oracle={} if oracles is None else oracles.frame.stats,
        upper_bound={} if oracles is None else oracles.bound.stats,
        per_category=_per_category({} if found is None else found.metrics.per_class, names),
        per_video=[],
        missing_videos=sorted(left & set(truth.videos)) if truth else [],
    )
    report.write(out)
    return report


def _claim(config: Config) -> dict[str, Any]:
    """What of the configuration an evaluation depends on."""
    if config.model.method != "idol":
        return clip_results.claim(config)
    return {**detect.claim(config), "tracker": to_dict(config.tracker)}


def _per_category(
    per_class: Mapping[int, Mapping[str, float]], names: Mapping[int, str]
) -> list[CategoryMetrics]:
    return [
        CategoryMetrics(category_id=i, name=names.get(i, str(i)), stats=stats)
        for i, stats in per_class.items()
    ]


def _with_effect(faults: Sequence[Reject], truth: Truth | None) -> list[dict[str, Any]]:
    """The rejects with what each does to the scores."""
    known = frozenset(truth.videos if truth else ())
    other = "not scored" if truth else "left out"
    return [
        {**fault._asdict(), "effect": "counted as missed" if fault.video_id in known else other}
        for fault in faults
    ]


def check_truth(annotation_file: str | Path) -> None:
    """Raise ValueError where there is nothing to score against, DatasetError for a bad file."""
    if formats.dataset(annotation_file).truth() is None:
        raise ValueError(f"{annotation_file} holds no truth: there is nothing to score against")


def _detect_and_track(
    dataset: Dataset,
    model: IDOL,
    out: AnyPath,
    config: Config,
    actors: cluster.Pool | int | None,
    gpu: bool | None,
    overwrite: bool,
    reject_limit: float | None,
) -> Manifest:
    """Detections, then tracks; of many frames, both at the same time."""
    detections, ahead = out / DETECTIONS, out / _AHEAD
    if overwrite:
        paths.remove_tree(ahead)
    total = sum(len(video.frames) for video in dataset.videos)
    together = total > track.FEW_FRAMES and not (detections / manifest.MANIFEST).exists()
    with cluster.session() if together else contextlib.nullcontext():
        early = None
        if together:
            shards = shard_plan.plan(dataset.videos, config.detect.frames_per_shard)
            early = TrackAhead(shards, detections, config, ahead)
        detect.run(
            dataset,
            model,
            detections,
            config,
            actors=actors,
            gpu=gpu,
            overwrite=overwrite,
            reject_limit=reject_limit,
            on_shard=early.shard if early else None,
        )
        if early:
            early.finish()
        return track.run(detections, out / TRACKS, config.tracker, overwrite=overwrite, ahead=ahead)


def with_categories(config: Config, dataset: Dataset) -> Config:
    """The configuration with the dataset's categories, which must be those it was trained on.

    Names are compared without case and separators. Of a checkpoint that names none, the labels are
    the category ids in ascending order, which a warning says.

    Raises: ValueError: they disagree.
    """
    given = dataset.categories
    if not config.category_ids:
        if len(given) != config.model.num_classes:
            raise ValueError(
                f"the checkpoint has {config.model.num_classes} classes, the dataset "
                f"{len(given)} categories. Was it trained on another dataset?"
            )
        _log.warning(
            "the checkpoint does not say which categories it was trained on: its labels are taken "
            "for the dataset's categories in the order of their ids"
        )
        return replace(config, categories=tuple(given.values()), category_ids=tuple(given))
    trained = dict(zip(config.category_ids, config.categories, strict=True))
    differing = {i for i in {**trained, **given} if not same(trained.get(i), given.get(i))}
    if differing:
        first = min(differing)
        raise ValueError(
            f"the checkpoint was trained on other categories than the dataset has: category_id "
            f"{first} is {trained.get(first, 'absent')!r} in the checkpoint and "
            f"{given.get(first, 'absent')!r} in the dataset ({len(differing)} of "
            f"{len({**trained, **given})} differ). Evaluate on the dataset it was trained for, or "
            "train on this one from it with --reset-classes."
        )
    return config


def summarise(
    found: StoredMetrics | None,
    dataset: Dataset,
    source: StoredDetections,
    config: Config,
    rejects: Sequence[Mapping[str, Any]],
    selection: Selection,
) -> EvaluationReport:
    """What report.json holds; found is None where there is no truth."""
    metrics = None if found is None else found.oracles.predicted
    rows = [] if found is None else found.per_video
    names = {video.video_id: video.name for video in dataset.videos} if rows else {}
    categories = dict(zip(config.category_ids, config.categories, strict=True))
    return EvaluationReport(
        videos=len(source.videos),
        frames=sum(video.length for video in source.videos),
        sources=dataset.sources,
        rejects=rejects,
        config=_claim(config),
        selection=selection,
        metrics={} if metrics is None else metrics.stats,
        frame_oracle={} if found is None else found.oracles.frame.stats,
        upper_bound={} if found is None else found.oracles.bound.stats,
        per_category=_per_category({} if metrics is None else metrics.per_class, categories),
        per_video=[replace(row, name=names.get(row.video_id, "")) for row in rows],
        missing_videos=[] if metrics is None else metrics.missing_videos,
    )


def _absolute(path: str) -> str:
    """A path that is right from any folder; an address stays, without its secrets."""
    return shown(path) if is_remote(path) else str(Path(path).resolve())
