"""Detect, track, score and report: a checkpoint and a dataset in, metrics and pictures out."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import idol
from idol import evaluation, results
from idol import truth as truth_file
from idol.config import Config, TrackerConfig, from_dict, override, to_dict
from idol.evaluation import Metrics, VideoMatches
from idol.model import IDOL
from idol.tracker import select
from idol.truth import Truth
from pipelines import annotations as annotation_files
from pipelines import cluster, detect, experiment_log, frames, manifest, stored, track
from pipelines.annotations import Dataset
from pipelines.errors import PipelineError
from pipelines.manifest import Manifest
from pipelines.stored import StoredDetections

STAGE = "evaluate"
DETECTIONS = "detections"
TRACKS = "tracks"
REPORT = "report.json"
PAGE = "report.html"
FILES = {
    "results": track.RESULTS,
    "submission": track.SUBMISSION,
    "report": REPORT,
    "page": PAGE,
    "detections": DETECTIONS,
}
"""What a finished directory holds, by the name that the job prints it under."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a run is worth.

    metrics:         of the whole dataset
    per_video:       video_id -> AP, AP50, ... of that video alone
    true_identities: as metrics, for a tracker that knows every true identity: what detection
                     leaves to be had. The difference is what association loses.
    """

    metrics: Metrics
    per_video: dict[int, dict[str, float]]
    true_identities: Metrics


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
    actors: int | None = None,
    overwrite: bool = False,
    log_to: Path | None = None,
) -> Manifest:
    """Evaluate a checkpoint on a dataset.

    annotation_file: YouTube-VIS or OVIS JSON, with truth or without
    checkpoint:      see idol.load
    out:             gets detections/, tracks/, results.json, report.json, report.html
    preset:          configuration of a released checkpoint, which carries none
    overrides:       "section.field=value" on the checkpoint's configuration
    tracker:         see tracker_config; default: the checkpoint's
    frames_root:     folder of the frames
    video_ids:       only these videos
    stride:          every stride-th frame only
    actors:          copies of the network; see detect.run
    overwrite:       replace another run's output
    log_to:          folder of the MLflow file; default: out
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
    output = manifest.prepare_output(
        out, STAGE, claimed, detect.input_hash(dataset, model), overwrite=overwrite
    )
    if output.finished is not None:
        return output.finished
    with cluster.session():
        detect.run(dataset, model, out / DETECTIONS, config, actors=actors, overwrite=overwrite)
        tracked = track.run(out / DETECTIONS, out / TRACKS, config.tracker, overwrite=overwrite)
    source = stored.read(out / DETECTIONS)
    result_bytes = (out / TRACKS / track.RESULTS).read_bytes()
    manifest.commit_bytes(result_bytes, out / track.RESULTS)
    manifest.commit_bytes((out / TRACKS / track.SUBMISSION).read_bytes(), out / track.SUBMISSION)
    scores = None if truth is None else score(truth, source, out / track.RESULTS, config.tracker)
    rejects = manifest.read_rejects(source.path)
    summary = summarise(scores, dataset, source, config, rejects)
    manifest.commit_json(summary, out / REPORT)
    with experiment_log.run(log_to or out, f"evaluate {out.name}", claimed) as log:
        log.metrics(flat_metrics(summary))
        log.artifacts(out / REPORT, out / track.RESULTS)
    return output.finish(
        rows=tracked.rows,
        rejects=rejects,
        extra={"metrics": summary["metrics"]},
    )


def configuration(
    model: IDOL, dataset: Dataset, overrides: Iterable[str], tracker: str | Path | None
) -> Config:
    """The checkpoint's configuration with what the caller changes, checked against the dataset.

    Errors: ValueError where the dataset has other categories than the checkpoint, or an override
            would change the network; PipelineError for a threshold below the score floor
    """
    config = with_categories(model.config, dataset)
    if tracker is not None:
        config = replace(config, tracker=tracker_config(tracker))
    config = override(config, overrides)
    if config.model != model.config.model:
        raise ValueError(
            "--set model.... cannot change a trained network; leave the section model as the "
            "checkpoint has it, or train another one"
        )
    if config.tracker.score_threshold < config.detect.score_floor:
        raise PipelineError(
            f"tracker.score_threshold ({config.tracker.score_threshold:g}) asks for detections "
            f"below detect.score_floor ({config.detect.score_floor:g}), which are not stored. Add "
            f"--set detect.score_floor={config.tracker.score_threshold:g}"
        )
    return config


def tracker_config(name: str | Path) -> TrackerConfig:
    """A tracker by name, or from a JSON file such as the best.json of a sweep.

    name:   released, ovis, paper, robust, or a path; the file holds {"tracker": {field: value}}
    Errors: ValueError for an unknown name, a file that is no such JSON, or an unknown field
    """
    named = {
        "released": TrackerConfig.released,
        "ovis": lambda: TrackerConfig.released("ovis"),
        "paper": TrackerConfig.paper,
        "robust": TrackerConfig.robust,
    }
    if str(name) in named:
        return named[str(name)]()
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"there is no tracker {str(name)!r}: give one of {', '.join(named)}, or a JSON file "
            "such as the best.json of jobs.sweep"
        )
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("tracker"), Mapping):
        raise ValueError(f'{path} is no tracker file: it must hold {{"tracker": {{field: value}}}}')
    return from_dict(TrackerConfig, content["tracker"])


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


def score(
    truth: Truth, source: StoredDetections, result_file: Path, tracker: TrackerConfig
) -> Scores:
    """Score results, video by video, and what true identities would give."""
    entries = results.read(result_file)
    of_video: dict[int, list[int]] = {video_id: [] for video_id in truth.videos}
    for index, entry in enumerate(entries):
        of_video.setdefault(entry["video_id"], []).append(index)
    videos = {video.video_id: video for video in source.videos}
    matches: list[VideoMatches] = []
    known: list[VideoMatches] = []
    with cluster.progress(len(truth.videos), "score", "videos") as bar:
        for video_id, video_truth in truth.videos.items():
            rows = of_video[video_id]
            matches.append(evaluation.match_video([entries[i] for i in rows], video_truth, rows))
            if video_id not in videos:
                known.append(evaluation.match_video([], video_truth))
            else:
                known.append(_match_true_identities(source, video_id, truth, tracker))
            bar.update()
    per_video = {m.video_id: dict(evaluation.summarise([m]).stats) for m in matches if m.num_truth}
    return Scores(evaluation.summarise(matches), per_video, evaluation.summarise(known))


def summarise(
    scores: Scores | None,
    dataset: Dataset,
    source: StoredDetections,
    config: Config,
    rejects: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """report.json: plain JSON types, the metrics under the keys of the official evaluators."""
    names = {video.video_id: video.name for video in dataset.videos}
    summary: dict[str, Any] = {
        "metrics": {},
        "videos": len(source.videos),
        "frames": sum(video.length for video in source.videos),
        "sources": list(dataset.sources),
        "rejects": [dict(row) for row in rejects],
        "config": {**detect.claim(config), "tracker": to_dict(config.tracker)},
    }
    if scores is None:
        return summary
    categories = dict(zip(config.category_ids, config.categories, strict=True))
    return summary | {
        "metrics": dict(scores.metrics.stats),
        "true_identities": dict(scores.true_identities.stats),
        "per_category": [
            {"category_id": i, "name": categories.get(i, str(i)), **row}
            for i, row in scores.metrics.per_class.items()
        ],
        "per_video": [
            {"video_id": i, "name": names.get(i, ""), **row} for i, row in scores.per_video.items()
        ],
        "missing_videos": list(scores.metrics.missing_videos),
    }


def flat_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary under one name each, for the experiment log."""
    flat = {name: float(value) for name, value in summary["metrics"].items()}
    flat |= {
        f"true_identities/{name}": float(value)
        for name, value in summary.get("true_identities", {}).items()
    }
    flat |= {f"category/{row['name']}/AP": row["AP"] for row in summary.get("per_category", [])}
    return flat | {"videos": summary["videos"], "rejects": len(summary["rejects"])}


def _match_true_identities(
    source: StoredDetections, video_id: int, truth: Truth, tracker: TrackerConfig
) -> VideoMatches:
    """Matches of the tracker that knows every identity, on the detections the real one gets."""
    video = next(v for v in source.videos if v.video_id == video_id)
    stored_frames = list(source.frames(video))
    overlaps = list(source.overlaps(video))
    rows = [select(frame, tracker).tolist() for frame in stored_frames]
    return evaluation.match_video_from_overlaps(
        evaluation.true_identity_tracks(stored_frames, overlaps, rows=rows),
        overlaps,
        truth.videos[video_id],
        category_ids=source.category_ids,
        config=tracker,
    )


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
