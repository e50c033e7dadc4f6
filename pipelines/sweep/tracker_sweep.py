"""The best tracker for a dataset, found on stored detections: no image, no mask, no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from idol.config import Config, TrackerConfig, from_dict, override, to_dict
from pipelines import configuration, formats
from pipelines.errors import ManifestError, PipelineError
from pipelines.report import experiment_log
from pipelines.stages import track
from pipelines.storage import claims, layout, manifest, stored
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.reports import EvaluationReport
from pipelines.storage.stored import StoredDetections
from pipelines.storage.sweep_report import Ledger
from pipelines.sweep import every_sweep, objective
from pipelines.sweep.every_sweep import Sweep
from pipelines.sweep.space import Choices, Space
from pipelines.sweep.tracker_trials import MissedVideo, TrackerTrials


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerSweep(Sweep):
    """What is asked for: all that decides the outcome, and where things are.

    evaluated:       a finished output of evaluate.run, on a dataset with truth
    annotation_file: where the truth is now, if it has moved since the evaluation
    """

    base: TrackerConfig
    evaluated: AnyPath
    annotation_file: str | None = None


def grid(fields: Mapping[str, Sequence[Any]]) -> Space:
    """A space of lists, from {field of TrackerConfig: values}."""
    return {f"tracker.{field}": Choices(tuple(values)) for field, values in fields.items()}


def base_config(
    evaluated: AnyPath, tracker: str | Path | None = None, overrides: Iterable[str] = ()
) -> TrackerConfig:
    """What a sweep starts from: a named tracker, else that of the evaluation; then overrides.

    tracker: see configuration.tracker_config
    Raises:
        ManifestError: an unfinished evaluation.
        ValueError: an unknown tracker, or a bad override.
    """
    used = EvaluationReport.read(evaluated).config["tracker"]
    named = None if tracker is None else configuration.tracker_config(tracker)
    return override(Config(tracker=named or from_dict(TrackerConfig, used)), overrides).tracker


def run(
    wanted: TrackerSweep,
    out: AnyPath,
    *,
    max_concurrent: int | None = None,
    time_budget: float | None = None,
    overwrite: bool = False,
    log_to: AnyPath | None = None,
) -> Manifest:
    """Search for the best tracker on the detections that an evaluation stored.

    out:       gets best.json (for --tracker of jobs.evaluate), report.json, report.html
    max_concurrent: configurations tried at the same time; default: half of the logical CPUs
    time_budget:    seconds after which the best so far is taken
    log_to:    folder of the MLflow file; default: out
    returns:   the manifest; its extra holds the best trial, the base's, and held-out values
    Raises:
        ManifestError: the evaluation is not finished, or out holds something else.
        ValueError: a bad objective, or a grid over a range.
        PipelineError: the base is below what was stored, or the search could not be finished
            (finished trials are kept, and the same call does the rest).
    """
    manifest.read(wanted.evaluated, layout.EVALUATE)
    source = stored.read(wanted.evaluated / layout.DETECTIONS)
    if not source.has_truth:
        raise PipelineError(
            f"{wanted.evaluated} was made without truth: there is nothing to score against"
        )
    track.check_floor(source, wanted.base)
    wanted.search.planned(wanted.space)  # refuses a grid over a range
    trials = workload(wanted, source)
    settings = wanted.to_dict()
    claim = {name: settings[name] for name in ("base", "space", "search")}
    input_hash = source.manifest.hash
    output = claims.prepare_output(out, layout.SWEEP, claim, input_hash, overwrite=overwrite)
    if output.finished is not None:
        return output.finished
    manifest.commit_json(settings, out / every_sweep.SETTINGS)
    ledger = Ledger(out / every_sweep.LEDGER, input_hash)
    with experiment_log.run(log_to or out, f"sweep {out.name}", output.config) as log:
        best, report = every_sweep.search(
            wanted, trials, ledger, log, max_concurrent=max_concurrent, time_budget=time_budget
        )
        chosen = trials.config(best.values)
        return every_sweep.finish(
            output,
            report,
            title="Tracker sweep",
            name=f"{len(report.trials)} configurations on stored detections",
            best={"tracker": to_dict(chosen)},
            commands={"evaluate with the best": command(chosen)},
            log=log,
        )


def command(tracker: TrackerConfig) -> str:
    """How to evaluate with a tracker: the named one that is nearest, and what differs from it."""
    wanted, nearest = to_dict(tracker), ("", {**to_dict(tracker)})
    for name in ("released", "ovis", "paper", "multi_cue", "robust"):
        named = to_dict(configuration.tracker_config(name))
        other = {key: value for key, value in wanted.items() if value != named[key]}
        if not nearest[0] or len(other) < len(nearest[1]):
            nearest = name, other
    flags = [f"--set 'tracker.{key}={json.dumps(value)}'" for key, value in nearest[1].items()]
    where = "--annotations OTHER --checkpoint CHECKPOINT --out RUN"
    return " ".join([f"python -m jobs.evaluate {where} --tracker {nearest[0]}", *flags])


def workload(wanted: TrackerSweep, source: StoredDetections) -> TrackerTrials:
    """The stored videos with their truth, the videos that have only truth, and what is asked.

    Raises: ManifestError: the annotations are not those of the evaluation.
    """
    selection = EvaluationReport.read(wanted.evaluated).selection
    path = wanted.annotation_file or selection.annotations
    chosen: dict[str, Any] = {"video_ids": selection.videos, "stride": selection.stride}
    dataset = formats.dataset(path, selection.frames, **chosen)
    if dataset.input_hash != selection.input_hash:
        reason = f"was made from other annotations than {path} holds now"
        todo = "Give the file it was made from with --annotations, or evaluate again."
        raise ManifestError(str(wanted.evaluated), reason, todo)
    truth = dataset.truth()
    assert truth is not None, "detections with overlaps come from annotations with truth"
    there = {video.video_id for video in source.videos}
    order = np.random.default_rng([wanted.search.seed, 1]).permutation(sorted(truth.videos))
    truths, missed, occlusion = {}, {}, False
    for video_id, video in truth.videos.items():
        occlusion |= video.occlusion is not None
        if video_id in there:
            truths[video_id] = video.without_masks()
        else:
            missed[video_id] = MissedVideo.of(video)
    return TrackerTrials(
        source=source,
        truths=truths,
        missed=missed,
        order=order.tolist(),
        base=wanted.base,
        goal=objective.parse(wanted.search.objective, occlusion=occlusion),
        rungs=wanted.search.rungs(len(order)),
        folds=wanted.search.folds,
    )
