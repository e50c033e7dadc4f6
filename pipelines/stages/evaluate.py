"""Detect, track, score and report: a checkpoint and a dataset in, metrics and pictures out."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import idol
from idol.config import Config, to_dict
from idol.files import write_whole
from idol.network.model import IDOL
from idol.ytvis import truth as truth_file
from idol.ytvis.truth import Truth
from pipelines import cluster
from pipelines import configuration as configurations
from pipelines.report import experiment_log, page, run_page
from pipelines.sources import annotations as annotation_files
from pipelines.sources import frames
from pipelines.sources.annotations import Dataset
from pipelines.stages import detect, scoring, shard_plan, track
from pipelines.stages.track_ahead import TrackAhead
from pipelines.storage import claims, manifest, stored, tables
from pipelines.storage.layout import DETECTIONS, PAGE, REPORT, RESULTS, SUBMISSION, TRACKS
from pipelines.storage.layout import EVALUATE as STAGE
from pipelines.storage.manifest import Manifest
from pipelines.storage.reports import CategoryMetrics, EvaluationReport, Selection
from pipelines.storage.stored import StoredDetections

FILES = {
    "results": RESULTS,
    "submission": SUBMISSION,
    "report": REPORT,
    "page": PAGE,
    "detections": DETECTIONS,
}
"""What a finished directory holds, by the name that the job prints it under."""

_AHEAD = "ahead"  # what was tracked before detection had ended, until it is taken over

logger = logging.getLogger(__name__)


def run(
    annotation_file: str | Path,
    checkpoint: str | Path,
    out: Path,
    *,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    tracker: str | Path | None = None,
    frames_root: str | None = None,
    video_ids: Collection[int] | None = None,
    stride: int = 1,
    actors: cluster.Pool | int | None = None,
    gpu: bool | None = None,
    overwrite: bool = False,
    log_to: Path | None = None,
    log: bool = True,
) -> Manifest:
    """Evaluate a checkpoint on a dataset.

    annotation_file: YouTube-VIS or OVIS JSON, with truth or without
    checkpoint:      see idol.load
    out:             gets detections/, tracks/, results.json, report.json, report.html
    preset:          configuration of a released checkpoint, which carries none
    overrides:       "section.field=value" on the checkpoint's configuration
    tracker:         see configuration.tracker_config; default: the checkpoint's
    frames_root:     folder of the frames
    video_ids:       only these videos
    stride:          every stride-th frame only
    actors:          copies of the network; see detect.run
    gpu:             whether they run on GPUs; see detect.run
    overwrite:       replace another run's output
    log_to:          folder of the MLflow file; default: out
    log:             False: no MLflow run, for MLflow wants a single writer and this is not it
    returns:         the manifest; its extra holds the metrics
    Errors:          ValueError for a checkpoint of other categories or a bad override; what the
                     stages raise (PipelineError and its kinds)

    A killed run goes on where it was by the same call.
    """
    dataset = annotation_files.read(
        annotation_file, frames_root, video_ids=video_ids, stride=stride
    )
    model = idol.load(str(checkpoint), preset=preset)
    config = configuration(model, dataset, overrides, tracker)
    # Read before anything is computed: what is wrong with it should not be found an hour later.
    truth = read_truth(annotation_file, dataset, video_ids=video_ids, stride=stride)
    claimed = {**detect.claim(config), "tracker": to_dict(config.tracker)}
    output = claims.prepare_output(
        out, STAGE, claimed, detect.input_hash(dataset, model), overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    tracked = _detect_and_track(dataset, model, out, config, actors, gpu, overwrite)
    source = stored.read(out / DETECTIONS)
    for name in (RESULTS, SUBMISSION):
        write_whole(out / name, (out / TRACKS / name).read_bytes())
    scores = None if truth is None else scoring.score(truth, source, config.tracker)
    rejects = tables.read_rejects(source.path)
    report = summarise(
        scores,
        dataset,
        source,
        config,
        rejects,
        Selection(
            annotations=_absolute(str(annotation_file)),
            frames=None if frames_root is None else _absolute(frames_root),
            videos=None if video_ids is None else sorted(video_ids),
            stride=stride,
            input_hash=dataset.input_hash,
        ),
    )
    report.write(out)
    page.write(
        out / PAGE,
        page.Report(
            title=f"Evaluation of {Path(checkpoint).name}",
            summary=f"{report.videos} videos, {report.frames} frames of "
            f"{', '.join(dataset.sources)}",
            metrics=run_page.metric_sets(out.name, report),
            videos=run_page.video_rows(report),
            strips=run_page.pictures(dataset, source, out / TRACKS, report),
            rejects=rejects,
            config=report.config,
        ),
    )
    if log:
        with experiment_log.run(log_to or out, f"evaluate {out.name}", claimed) as opened:
            opened.metrics(report.flat())
            opened.artifacts(out / REPORT, out / PAGE, out / RESULTS)
    return output.finish(
        rows=tracked.rows,
        rejects=rejects,
        extra={"metrics": report.metrics},
    )


def check(
    annotation_file: str | Path,
    checkpoint: str | Path,
    *,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    tracker: str | Path | None = None,
    frames_root: str | None = None,
    video_ids: Collection[int] | None = None,
    stride: int = 1,
) -> None:
    """Find out whether run would begin, without beginning: arguments and errors as there."""
    dataset = annotation_files.read(
        annotation_file, frames_root, video_ids=video_ids, stride=stride
    )
    configuration(idol.load(str(checkpoint), preset=preset), dataset, overrides, tracker)
    read_truth(annotation_file, dataset, video_ids=video_ids, stride=stride)


def check_truth(annotation_file: str | Path) -> None:
    """Find out whether there is something to score against.

    Errors: ValueError where there is not; DatasetError for a file that cannot be read
    """
    if read_truth(annotation_file, annotation_files.read(annotation_file)) is None:
        raise ValueError(f"{annotation_file} holds no truth: there is nothing to score against")


def _detect_and_track(
    dataset: Dataset,
    model: IDOL,
    out: Path,
    config: Config,
    actors: cluster.Pool | int | None,
    gpu: bool | None,
    overwrite: bool,
) -> Manifest:
    """Detections, then tracks; of many frames, both at the same time."""
    ahead = out / _AHEAD
    if overwrite:
        shutil.rmtree(ahead, ignore_errors=True)
    frames_to_track = sum(len(video.frames) for video in dataset.videos)
    detected = (out / DETECTIONS / manifest.MANIFEST).exists()
    if detected or frames_to_track <= track.FEW_FRAMES:
        detect.run(
            dataset, model, out / DETECTIONS, config, actors=actors, gpu=gpu, overwrite=overwrite
        )
        return track.run(
            out / DETECTIONS, out / TRACKS, config.tracker, overwrite=overwrite, ahead=ahead
        )
    with cluster.session():
        shards = shard_plan.plan(dataset.videos, config.detect.frames_per_shard)
        early = TrackAhead(shards, out / DETECTIONS, config, ahead)
        detect.run(
            dataset,
            model,
            out / DETECTIONS,
            config,
            actors=actors,
            gpu=gpu,
            overwrite=overwrite,
            on_shard=early.shard,
        )
        early.finish()
        return track.run(
            out / DETECTIONS, out / TRACKS, config.tracker, overwrite=overwrite, ahead=ahead
        )


def configuration(
    model: IDOL, dataset: Dataset, overrides: Iterable[str], tracker: str | Path | None
) -> Config:
    """The checkpoint's configuration with what the caller changes, checked against the dataset.

    Errors: ValueError where the dataset has other categories than the checkpoint, or an override
            would change the network; PipelineError for a threshold below the score floor
    """
    config = with_categories(model.config, dataset)
    return configurations.changed(config, overrides, tracker)


def with_categories(config: Config, dataset: Dataset) -> Config:
    """The configuration with the dataset's categories, which must be those it was trained on.

    A released checkpoint names no categories; its labels are the dataset's category ids in
    ascending order, as in the released code.
    Errors: ValueError where they disagree
    """
    names, ids = dataset.category_names, dataset.category_ids
    if not config.category_ids:
        if len(ids) != config.model.num_classes:
            raise ValueError(
                f"the checkpoint has {config.model.num_classes} classes, the dataset "
                f"{len(ids)} categories. Was it trained on another dataset?"
            )
        return replace(config, categories=names, category_ids=ids)
    trained = dict(zip(config.category_ids, config.categories, strict=True))
    given = dict(zip(ids, names, strict=True))
    if trained != given:
        differing = sorted(
            i for i in trained.keys() | given.keys() if trained.get(i) != given.get(i)
        )
        first = differing[0]
        raise ValueError(
            f"the checkpoint was trained on other categories than the dataset has: category_id "
            f"{first} is {trained.get(first, 'absent')!r} in the checkpoint and "
            f"{given.get(first, 'absent')!r} in the dataset ({len(differing)} of "
            f"{len(trained | given)} differ). Evaluate on the dataset it was trained for, or "
            "train on this one from it with --reset-classes."
        )
    return config


def read_truth(
    annotation_file: str | Path,
    dataset: Dataset,
    *,
    video_ids: Collection[int] | None = None,
    stride: int = 1,
) -> Truth | None:
    """The truth of what was read as dataset, for scoring; None where the file has none.

    Videos without readable frames are in it, and will be scored as missed. Videos whose
    annotations are at fault cannot be scored, and are left out.
    """
    if not any(video.instances for video in dataset.videos):
        return None
    content = json.loads(frames.read_bytes(str(annotation_file)))
    wanted = {v["id"] for v in content["videos"]}
    if video_ids is not None:
        wanted &= set(video_ids)
    seen = {i.instance_id for video in dataset.videos for i in video.instances}
    usable = {video.video_id for video in dataset.videos}

    def parse(ids: set[int]) -> Truth:
        return truth_file.read(
            {
                "categories": content["categories"],
                "videos": [_strided(v, stride) for v in content["videos"] if v["id"] in ids],
                "annotations": [
                    _strided(a, stride)
                    for a in content["annotations"]
                    # Where frames are left out, some objects never appear.
                    if a["video_id"] in ids and (a["id"] in seen or a["video_id"] not in usable)
                ],
            }
        )

    try:
        return parse(wanted)
    except ValueError as error:
        if not wanted - usable:
            raise
        logger.warning("rejected videos are not scored, for their truth is unreadable: %s", error)
        return parse(wanted & usable)


def summarise(
    scores: scoring.Scores | None,
    dataset: Dataset,
    source: StoredDetections,
    config: Config,
    rejects: Sequence[Mapping[str, Any]],
    selection: Selection,
) -> EvaluationReport:
    """What report.json holds; scores are None where there is no truth."""
    names = {video.video_id: video.name for video in dataset.videos}
    categories = dict(zip(config.category_ids, config.categories, strict=True))
    per_class = {} if scores is None else scores.metrics.per_class
    return EvaluationReport(
        videos=len(source.videos),
        frames=sum(video.length for video in source.videos),
        sources=dataset.sources,
        rejects=rejects,
        config={**detect.claim(config), "tracker": to_dict(config.tracker)},
        selection=selection,
        metrics={} if scores is None else scores.metrics.stats,
        true_identities={} if scores is None else scores.true_identities.stats,
        per_category=[
            CategoryMetrics(category_id=i, name=categories.get(i, str(i)), stats=stats)
            for i, stats in per_class.items()
        ],
        per_video=[
            replace(row, name=names.get(row.video_id, ""))
            for row in ([] if scores is None else scores.per_video)
        ],
        missing_videos=[] if scores is None else scores.metrics.missing_videos,
    )


def _absolute(path: str) -> str:
    """A path that is right from any folder; an address stays."""
    return path if frames.is_remote(path) else str(Path(path).resolve())


def _strided(item: Mapping[str, Any], stride: int) -> dict[str, Any]:
    """A video or annotation of the JSON with every stride-th frame."""
    if stride == 1:
        return dict(item)
    lists = ("file_names", "segmentations", "areas", "bboxes", "occlusion")
    kept = {
        key: value[::stride] if key in lists and isinstance(value, list) else value
        for key, value in item.items()
    }
    kept.pop("length", None)  # counted from file_names instead
    return kept
