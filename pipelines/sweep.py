"""The best tracker for a dataset, found on stored detections: no image, no mask, no network."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idol import evaluation
from idol.config import Config, TrackerConfig, from_dict, override, to_dict
from idol.evaluation import Metrics, VideoMatches
from idol.structures import FrameDetections
from idol.tracker import track_video
from idol.truth import VideoTruth
from pipelines import annotations as annotation_files
from pipelines import (
    cluster,
    configuration,
    evaluate,
    experiment_log,
    manifest,
    report,
    stored,
    track,
)
from pipelines.errors import ManifestError, PipelineError
from pipelines.manifest import Manifest
from pipelines.schemas import FrameOverlap
from pipelines.stored import StoredDetections

STAGE = "sweep"
BEST = "best.json"
TABLE = "report.json"
PAGE = "report.html"
FILES = {"best": BEST, "table": TABLE, "page": PAGE}
"""What a finished directory holds, by the name that the job prints it under."""
_LEDGER = "ledger.jsonl"
_SECTION = "tracker."
_CHILD_RUNS = 50  # of the best, in the experiment log; the table has them all

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration to be tried.

    values: swept field -> value, without the section; {} for the one that is compared with
    config: the whole tracker configuration
    """

    values: dict[str, Any]
    config: TrackerConfig

    @property
    def hash(self) -> str:
        """Names the configuration by every field of it."""
        return config_hash(self.config)


@dataclass(frozen=True, slots=True)
class LoadedVideo:
    """All that tracking and scoring need of one video, in memory."""

    frames: list[FrameDetections]
    overlaps: list[FrameOverlap]
    truth: VideoTruth


def config_hash(config: TrackerConfig) -> str:
    """Names a tracker configuration by every field of it."""
    return manifest.hash_value(to_dict(config))


def parse_grid(assignments: Iterable[str]) -> dict[str, list[Any]]:
    """["tracker.tau=0.2,0.5", "tracker.weighting=paper,released"] -> field -> checked values.

    Errors: ValueError for another section than tracker, an unknown field, a bad or repeated value
    """
    grid: dict[str, list[Any]] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator or not text.strip():
            raise ValueError(
                f"a grid is tracker.field=value,value,..., got {assignment!r}. "
                "Example: tracker.match_threshold=0.3,0.5,0.7"
            )
        if not key.startswith(_SECTION):
            raise ValueError(
                f"{key!r} cannot be swept on stored detections; the fields of tracker can, "
                "for example tracker.tau. Anything else needs jobs.evaluate for each value."
            )
        field = key.removeprefix(_SECTION)
        values = [
            getattr(override(Config(), [f"{key}={value}"]).tracker, field)
            for value in text.split(",")
        ]
        if field in grid or len(set(values)) < len(values):
            raise ValueError(f"{assignment!r} repeats a field or a value")
        grid[field] = values
    if not grid:
        raise ValueError("there is nothing to sweep: give --grid tracker.tau=0.2,0.5,1 or the like")
    return grid


def base_config(
    evaluated: Path, tracker: str | Path | None = None, overrides: Iterable[str] = ()
) -> TrackerConfig:
    """What a sweep starts from: a named tracker, else that of the evaluation; then overrides.

    tracker:   see configuration.tracker_config
    overrides: "tracker.field=value"
    Errors:    ManifestError for an unfinished evaluation; ValueError for a bad name or override
    """
    manifest.read(evaluated, "evaluate")
    if tracker is not None:
        base = configuration.tracker_config(tracker)
    else:
        used = json.loads((evaluated / evaluate.REPORT).read_text())["config"]["tracker"]
        base = from_dict(TrackerConfig, used)
    return override(Config(tracker=base), overrides).tracker


def trials(base: TrackerConfig, grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """The base itself, then every combination of the grid that differs from it, in order."""
    found = {config_hash(base): Trial({}, base)}
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        config = from_dict(TrackerConfig, {**to_dict(base), **values})
        found.setdefault(config_hash(config), Trial(values, config))
    # What equals the base is listed with its values, so that a plot over a field has it too.
    first = {name: getattr(base, name) for name in grid}
    return [Trial(first, base), *list(found.values())[1:]]


def load(source: StoredDetections, truths: Mapping[int, VideoTruth]) -> list[LoadedVideo]:
    """Read the stored detections and overlaps of every video that has truth."""
    return [
        LoadedVideo(
            list(source.frames(video)), list(source.overlaps(video)), truths[video.video_id]
        )
        for video in source.videos
        if video.video_id in truths
    ]


def score(
    videos: Sequence[LoadedVideo],
    missed: Sequence[VideoMatches],
    config: TrackerConfig,
    category_ids: Sequence[int],
) -> Metrics:
    """Track and score all videos with one configuration: arithmetic on small arrays.

    missed: videos with truth but without detections
    """
    matches = [
        evaluation.match_video_from_overlaps(
            track_video(video.frames, config),
            video.overlaps,
            video.truth,
            category_ids=category_ids,
            config=config,
        )
        for video in videos
    ]
    return evaluation.summarise([*matches, *missed])


def run(
    evaluated: Path,
    out: Path,
    grid: Mapping[str, Sequence[Any]],
    *,
    base: TrackerConfig | None = None,
    annotation_file: str | None = None,
    objective: str = "AP",
    processes: int | None = None,
    overwrite: bool = False,
    log_to: Path | None = None,
) -> Manifest:
    """Try every combination of the grid on the detections that an evaluation stored.

    evaluated:       a finished output of evaluate.run, on a dataset with truth
    out:             gets best.json (for --tracker of jobs.evaluate), report.json, report.html
    grid:            field of TrackerConfig -> values (see parse_grid)
    base:            the configuration whose fields the grid replaces, and that is compared with;
                     default: the one of the evaluation
    annotation_file: where the truth is now, if it has moved since
    objective:       the metric to be maximised
    processes:       trials that run at the same time; default: half of the logical CPUs
    overwrite:       replace another sweep in out
    log_to:          folder of the MLflow file; default: out
    returns:         the manifest; its extra holds the best trial and the base's
    Errors:          ManifestError, ValueError for a bad objective, PipelineError for a threshold
                     below what was stored, or where trials failed (the others are kept, and the
                     same call does the rest)
    """
    manifest.read(evaluated, "evaluate")
    source = stored.read(evaluated / evaluate.DETECTIONS)
    if not source.has_truth:
        raise PipelineError(
            f"{evaluated} was made without truth: there is nothing to score against"
        )
    selection = json.loads((evaluated / evaluate.REPORT).read_text())
    if base is None:
        base = base_config(evaluated)
    wanted = trials(base, grid)
    for trial in wanted:
        track.check_floor(source, trial.config)
    truths, missed = _truth(evaluated, selection["selection"], annotation_file, source)
    _check_objective(objective, [*truths.values()])
    output = manifest.prepare_output(
        out,
        STAGE,
        {
            "base": to_dict(base),
            "grid": {field: list(values) for field, values in grid.items()},
            "objective": objective,
        },
        source.manifest.hash,
        overwrite=overwrite,
    )
    if output.finished is not None:
        return output.finished
    if overwrite:
        (out / _LEDGER).unlink(missing_ok=True)
    ledger = Ledger(out / _LEDGER, source.manifest.hash)
    todo = [trial for trial in wanted if trial.hash not in ledger.read()]
    if todo:
        _tune(todo, source, truths, missed, ledger, processes)
    done = ledger.read()
    rows = [{"values": t.values, "hash": t.hash, "metrics": done[t.hash]} for t in wanted]
    table = {"objective": objective, "trials": rows}
    scores = [done[trial.hash][objective] for trial in wanted]
    # The first of equals: the base itself where nothing beats it.
    best = scores.index(max(scores))
    summary = {
        "objective": objective,
        "best": rows[best],
        "base": rows[0],
    }
    manifest.commit_json(table, out / TABLE)
    manifest.commit_json({"tracker": to_dict(wanted[best].config), **summary}, out / BEST)
    report.write(
        out / PAGE,
        report.Report(
            title="Tracker sweep",
            summary=f"{len(wanted)} configurations on {len(truths)} videos; best {objective} "
            f"{100 * scores[best]:.1f}, without the sweep {100 * scores[0]:.1f}",
            sweep=sweep_rows(table),
            sweep_name=f"{len(wanted)} trials on stored detections",
            config=summary,
        ),
    )
    _log(log_to or out, output, table, best)
    return output.finish(rows=len(wanted), extra={**summary, "configurations": len(wanted)})


class Ledger:
    """Finished configurations, one JSON line each, only ever appended to.

    A killed sweep loses what was being computed, and nothing before; Tune's own state may be torn
    by a kill.
    """

    def __init__(self, path: Path, input_hash: str) -> None:
        """input_hash: names the detections; lines about others are passed over."""
        self.path = path
        self._input_hash = input_hash

    def append(self, trial_hash: str, metrics: Mapping[str, float]) -> None:
        """Add a finished configuration, and see it on the disk."""
        line = {"input": self._input_hash, "hash": trial_hash, "metrics": dict(metrics)}
        with self.path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
            # A line that a kill has torn stays alone on its line.
            start = b"\n" if end and file.read(1) != b"\n" else b""
            file.write(start + json.dumps(line, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[str, dict[str, float]]:
        """Hash of each finished configuration -> its metrics."""
        done: dict[str, dict[str, float]] = {}
        if not self.path.exists():
            return done
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # the line in which the last run was killed
            if line["input"] == self._input_hash:
                done[line["hash"]] = line["metrics"]
        return done


def sweep_rows(table: Mapping[str, Any]) -> list[report.SweepRow]:
    """The trials of a sweep's report.json for the page."""
    return [
        report.SweepRow(params=row["values"], ap=row["metrics"]["AP"], default=index == 0)
        for index, row in enumerate(table["trials"])
    ]


def _truth(
    evaluated: Path,
    selection: Mapping[str, Any],
    annotation_file: str | None,
    source: StoredDetections,
) -> tuple[dict[int, VideoTruth], list[VideoMatches]]:
    """The truth of the stored videos, and the matches of those without detections."""
    path = annotation_file or selection["annotations"]
    chosen = {"video_ids": selection["videos"], "stride": selection["stride"]}
    dataset = annotation_files.read(path, selection["frames"], **chosen)
    if dataset.input_hash != selection["input_hash"]:
        raise ManifestError(
            str(evaluated),
            f"was made from other annotations than {path} holds now",
            "Give the file it was made from with --annotations, or evaluate again.",
        )
    truth = evaluate.read_truth(path, dataset, **chosen)
    assert truth is not None, "detections with overlaps come from annotations with truth"
    there = {video.video_id for video in source.videos}
    truths = {i: video for i, video in truth.videos.items() if i in there}
    missed = [evaluation.match_video([], v) for i, v in truth.videos.items() if i not in there]
    return truths, missed


def _check_objective(objective: str, truths: Sequence[VideoTruth]) -> None:
    known = evaluation.summarise([evaluation.match_video([], truths[0])]).stats
    if objective not in known:
        raise ValueError(f"there is no metric {objective!r} here; it must be one of {[*known]}")


def _tune(
    todo: Sequence[Trial],
    source: StoredDetections,
    truths: Mapping[int, VideoTruth],
    missed: Sequence[VideoMatches],
    ledger: Ledger,
    processes: int | None,
) -> None:
    """Deal the configurations out to a few Tune trials, and write down what each reports.

    A trial costs seconds before it does anything, a configuration less: so one trial per process,
    with many configurations each.
    """
    # Tune would write every result three more times, as CSV, JSON and TensorBoard events, and draw
    # its own tables on stdout.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    folder = ledger.path.parent.resolve() / "tune"
    shutil.rmtree(folder, ignore_errors=True)
    with cluster.session(), cluster.progress(len(todo), "sweep", "configurations") as bar:
        from ray import tune

        count = min(processes or max(1, cluster.cpus() // 2), len(todo))
        cluster.require(count)
        expected = {trial.hash for trial in todo}

        class WriteDown(tune.Callback):  # type: ignore[misc]
            """Runs in the driver, for each result as it comes."""

            def __init__(self, ledger: Ledger, expected: set[str], bar: Any) -> None:
                self.ledger, self.expected, self.bar = ledger, expected, bar

            def __getstate__(self) -> dict[str, Any]:
                return {}  # Tune pickles its callbacks, and a progress bar cannot be

            def on_trial_result(
                self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
            ) -> None:
                # The hash is of the configuration that the trial really used.
                if result["config_hash"] not in self.expected:
                    raise RuntimeError(
                        f"trial {trial} used a configuration that nobody asked for: {result}"
                    )
                self.ledger.append(result["config_hash"], result["stats"])
                self.bar.update()

        shared = {
            "source": source,
            "truths": {i: video.without_masks() for i, video in truths.items()},
            "missed": list(missed),
            "chunks": [[to_dict(trial.config) for trial in todo[i::count]] for i in range(count)],
        }
        found = tune.Tuner(
            tune.with_resources(tune.with_parameters(_run_chunk, shared=shared), {"cpu": 1}),
            param_space={"chunk": tune.grid_search(list(range(count)))},
            tune_config=tune.TuneConfig(metric="number", mode="max"),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(folder),
                callbacks=[WriteDown(ledger, expected, bar)],
                verbose=0,
            ),
        ).fit()
    shutil.rmtree(folder, ignore_errors=True)
    lacking = expected - set(ledger.read())
    if lacking:
        cause = f" The first error: {found.errors[0]}" if found.errors else ""
        raise PipelineError(
            f"{len(lacking)} of {len(todo)} configurations were not finished. The others are kept: "
            f"mend the cause, then run the same command.{cause}"
        )


def _run_chunk(space: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    """The trial: load once, then one configuration after the other."""
    import torch
    from ray import tune

    torch.set_num_threads(1)
    source: StoredDetections = shared["source"]
    videos = load(source, shared["truths"])
    for number, values in enumerate(shared["chunks"][space["chunk"]]):
        config = from_dict(TrackerConfig, values)
        metrics = score(videos, shared["missed"], config, source.category_ids)
        tune.report({"config_hash": config_hash(config), "stats": metrics.stats, "number": number})


def _log(place: Path, output: manifest.Output, table: Mapping[str, Any], best: int) -> None:
    """One run for the sweep, with a child for each of its best configurations."""
    objective = table["objective"]
    rows = table["trials"]
    with experiment_log.run(place, f"sweep {output.path.name}", output.config) as log:
        log.metrics(
            {
                f"best/{objective}": rows[best]["metrics"][objective],
                f"base/{objective}": rows[0]["metrics"][objective],
                "configurations": len(rows),
            }
        )
        log.artifacts(output.path / BEST, output.path / TABLE, output.path / PAGE)
        ranked = sorted(rows, key=lambda row: -row["metrics"][objective])
        for row in ranked[:_CHILD_RUNS]:
            name = ", ".join(f"{k}={v}" for k, v in row["values"].items())
            with experiment_log.run(place, name, {"tracker": row["values"]}, parent=log) as child:
                child.metrics(row["metrics"])
