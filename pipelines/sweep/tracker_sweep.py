"""The best tracker for a dataset, found on stored detections: no image, no mask, no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from idol.config import Config, TrackerConfig, from_dict, override, to_dict
from idol.ytvis.truth import VideoTruth
from pipelines import configuration
from pipelines.errors import ManifestError, PipelineError
from pipelines.report import experiment_log, page, run_page
from pipelines.sources import annotations as annotation_files
from pipelines.stages import track
from pipelines.storage import claims, layout, manifest, stored
from pipelines.storage.layout import PAGE
from pipelines.storage.layout import REPORT as TABLE
from pipelines.storage.layout import SWEEP as STAGE
from pipelines.storage.manifest import Manifest
from pipelines.storage.stored import StoredDetections
from pipelines.sweep import objective, scoring, workers
from pipelines.sweep import space as search_space
from pipelines.sweep.ledger import Ledger
from pipelines.sweep.scoring import MissedVideo
from pipelines.sweep.search import Outcome, SearchConfig
from pipelines.sweep.space import Choices, Space
from pipelines.sweep.tracker_trials import TrackerTrials
from pipelines.sweep.workers import Workload

BEST = "best.json"
FILES = {"best": BEST, "table": TABLE, "page": PAGE}
"""What a finished directory holds, by the name that the job prints it under."""
LEDGER = "ledger.jsonl"
SETTINGS = "settings.json"
"""What was asked for, so that an unfinished sweep can go on from its directory alone."""
_SECTION = "tracker."
_CHILD_RUNS = 50  # of the best, in the experiment log; the table has them all


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What is asked for: all that decides the outcome, and where things are.

    evaluated:       a finished output of evaluate.run, on a dataset with truth
    base:            the configuration whose fields are replaced, and that is compared with
    space:           "tracker.field" -> values
    search:          how to search, and for what
    annotation_file: where the truth is now, if it has moved since the evaluation
    """

    evaluated: Path
    base: TrackerConfig
    space: Space
    search: SearchConfig = field(default_factory=SearchConfig)
    annotation_file: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "evaluated": str(self.evaluated.resolve()),
            "base": to_dict(self.base),
            "space": search_space.to_dict_of(self.space),
            "search": asdict(self.search),
            "annotation_file": self.annotation_file,
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Sweep:
        """The inverse of to_dict."""
        return cls(
            evaluated=Path(plain["evaluated"]),
            base=from_dict(TrackerConfig, plain["base"]),
            space=search_space.from_dict(plain["space"]),
            search=SearchConfig(**plain["search"]),
            annotation_file=plain["annotation_file"],
        )


def settings_of(out: Path) -> dict[str, Any]:
    """What was asked for when the sweep in this directory was started.

    Errors: ManifestError where it holds none
    """
    path = out / SETTINGS
    if not path.is_file():
        raise ManifestError(
            str(out),
            f"holds no sweep to go on with ({SETTINGS} is missing)",
            "Start one: leave out --resume, and give --evaluation or --pairs.",
        )
    plain: dict[str, Any] = json.loads(path.read_text())
    return plain


def grid(fields: Mapping[str, Sequence[Any]]) -> Space:
    """A space of lists. fields: field of TrackerConfig, without the section -> values"""
    return {_SECTION + field: Choices(tuple(values)) for field, values in fields.items()}


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
        used = json.loads((evaluated / layout.REPORT).read_text())["config"]["tracker"]
        base = from_dict(TrackerConfig, used)
    return override(Config(tracker=base), overrides).tracker


def run(
    wanted: Sweep,
    out: Path,
    *,
    processes: int | None = None,
    overwrite: bool = False,
    log_to: Path | None = None,
) -> Manifest:
    """Search for the best tracker on the detections that an evaluation stored.

    out:       gets best.json (for --tracker of jobs.evaluate), report.json, report.html
    processes: configurations scored at the same time; default: half of the logical CPUs
    overwrite: replace another sweep in out
    log_to:    folder of the MLflow file; default: out
    returns:   the manifest; its extra holds the best configuration, the base's, and held-out scores
    Errors:    ManifestError; ValueError for a bad objective or a grid of ranges; PipelineError for
               a base below what was stored, or where the search could not be finished (what is
               done is kept, and the same call does the rest)
    """
    manifest.read(wanted.evaluated, "evaluate")
    source = stored.read(wanted.evaluated / layout.DETECTIONS)
    if not source.has_truth:
        raise PipelineError(
            f"{wanted.evaluated} was made without truth: there is nothing to score against"
        )
    track.check_floor(source, wanted.base)
    total = planned(wanted.search, wanted.space)
    trials = _trials(wanted, source)
    goal = trials.goal
    claim = {k: v for k, v in wanted.to_dict().items() if k in ("base", "space", "search")}
    output = claims.prepare_output(out, STAGE, claim, source.manifest.hash, overwrite=overwrite)
    if output.finished is not None:
        return output.finished
    manifest.commit_json(wanted.to_dict(), out / SETTINGS)
    ledger = Ledger(out / LEDGER, source.manifest.hash)
    failed, errors = search(wanted.space, wanted.search, trials, ledger, processes, total)
    rows = finished_rows(ledger, failed, errors, total)
    table = _table(wanted, trials, rows, failed)
    best = table["trials"][table["best"]]
    summary = {
        "objective": goal.name,
        "best": best,
        "base": table["trials"][0],
        "held_out": table["held_out"],
    }
    chosen = trials.config(_with_section(best["values"]))
    manifest.commit_json(table, out / TABLE)
    manifest.commit_json({"tracker": to_dict(chosen), **summary}, out / BEST)
    page.write(
        out / PAGE,
        page.Report(
            title="Tracker sweep",
            summary=sentence(table),
            sweep=run_page.sweep_rows(table),
            sweep_metric=goal.name,
            sweep_note=run_page.held_out_sentence(table),
            sweep_name=f"{len(rows)} configurations on stored detections",
            config=summary | {"failed": failed},
        ),
    )
    log(log_to or out, output, table)
    return output.finish(
        rows=len(rows), extra={**summary, "configurations": len(rows), "failed": len(failed)}
    )


def planned(settings: SearchConfig, space: Space) -> int:
    """Configurations of the whole sweep, the base included.

    Errors: ValueError for a grid of ranges
    """
    if settings.method != "grid":
        return settings.samples + 1
    return 1 + sum(1 for _ in search_space.combinations(space))


def _trials(wanted: Sweep, source: StoredDetections) -> TrackerTrials:
    """The stored videos with their truth, the videos that have only truth, and what is asked."""
    summary = json.loads((wanted.evaluated / layout.REPORT).read_text())
    selection = summary["selection"]
    path = wanted.annotation_file or selection["annotations"]
    chosen = {"video_ids": selection["videos"], "stride": selection["stride"]}
    dataset = annotation_files.read(path, selection["frames"], **chosen)
    if dataset.input_hash != selection["input_hash"]:
        raise ManifestError(
            str(wanted.evaluated),
            f"was made from other annotations than {path} holds now",
            "Give the file it was made from with --annotations, or evaluate again.",
        )
    truth = dataset.truth()
    assert truth is not None, "detections with overlaps come from annotations with truth"
    there = {video.video_id for video in source.videos}
    truths: dict[int, VideoTruth] = {}
    missed: dict[int, MissedVideo] = {}
    for video_id, video in truth.videos.items():
        if video_id in there:
            truths[video_id] = video.without_masks()
        else:
            missed[video_id] = MissedVideo.of(video)
    occlusion = any(video.occlusion is not None for video in truth.videos.values())
    return TrackerTrials(
        source=source,
        truths=truths,
        missed=missed,
        order=scoring.order_of([*truth.videos], wanted.search.seed),
        base=wanted.base,
        goal=objective.parse(wanted.search.objective, occlusion=occlusion),
        folds=wanted.search.folds,
    )


def search(
    space: Space,
    settings: SearchConfig,
    workload: Workload,
    ledger: Ledger,
    processes: int | None,
    total: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Do what the ledger lacks; what was left out, and the errors of workers that gave up."""
    names = ("number", "hash", "values", "budget", "value")
    known = [Outcome(**{name: row[name] for name in names}) for row in ledger.read()]
    done = len({outcome.hash for outcome in known})

    def write_down(result: Mapping[str, Any]) -> None:
        ledger.append({name: result[name] for name in (*names, "metrics", "folds")})

    return workers.run(
        space,
        settings,
        workload,
        known,
        ledger.path.parent / "tune",
        on_result=write_down,
        processes=processes,
        total=max(1, total - done),
    )


def finished_rows(
    ledger: Ledger,
    failed: Sequence[Mapping[str, Any]],
    errors: Sequence[str],
    total: int,
) -> list[dict[str, Any]]:
    """The furthest result of every configuration, in the order of the search.

    Errors: PipelineError where workers gave up, or there is nothing to compare: some that fail are
            left out and told of, but the base, or all others, are no sweep
    """
    furthest: dict[str, dict[str, Any]] = {}
    for row in ledger.read():
        there = furthest.get(row["hash"])
        if there is None or row["budget"] > there["budget"]:
            furthest[row["hash"]] = row
    rows = sorted(furthest.values(), key=lambda row: row["number"])
    causes = [*errors, *(str(f["reason"]) for f in failed)]
    if errors or not rows or rows[0]["number"] != 0 or (len(rows) == 1 and total > 1):
        raise PipelineError(
            f"{len(rows)} of {total} configurations were finished. They are kept: mend the cause, "
            f"then run the same command. The first error: {(causes or ['none was told'])[0]}"
        )
    return rows


def _table(
    wanted: Sweep,
    trials: TrackerTrials,
    rows: Sequence[dict[str, Any]],
    failed: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """report.json: every configuration with its metrics, which is best, and held-out scores."""
    full = [row for row in rows if row["budget"] == trials.budget]
    # The first of equals: the base itself where nothing beats it.
    best = max(full, key=lambda row: (row["value"], -row["number"]))
    # The base is listed with its values, so that a plot over a field has it too.
    own = {key: getattr(wanted.base, key.removeprefix(_SECTION)) for key in wanted.space}
    listed = [
        {
            **{name: row[name] for name in ("number", "hash", "budget", "value", "metrics")},
            "values": {
                key.removeprefix(_SECTION): value for key, value in (row["values"] or own).items()
            },
        }
        for row in rows
    ]
    return {
        "objective": trials.goal.name,
        "budget": trials.budget,
        "unit": "videos",
        "best": rows.index(best),
        "trials": listed,
        "held_out": _held_out(trials, full),
        "failed": list(failed),
    }


def _held_out(trials: TrackerTrials, full: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Cross-validation: for every fold, what was best on the other videos, scored on its own."""
    if not trials.folds or trials.budget < 2 * trials.folds:
        return None
    winners = [
        max(full, key=lambda row: (row["folds"][fold], -row["number"]))
        for fold in range(trials.folds)
    ]
    found = scoring.held_out(
        trials.load(),
        trials.order,
        [trials.config(row["values"]) for row in winners],
        trials.base,
        trials.goal,
        trials.source.category_ids,
    )
    for fold, row in zip(found["folds"], winners, strict=True):
        fold["values"] = {k.removeprefix(_SECTION): v for k, v in row["values"].items()}
    return found


def _with_section(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_SECTION + field: value for field, value in values.items()}


def sentence(table: Mapping[str, Any]) -> str:
    """What came out, in a line."""
    best, base = table["trials"][table["best"]], table["trials"][0]
    left_out = f", {len(table['failed'])} left out" if table["failed"] else ""
    return (
        f"{len(table['trials'])} configurations of {table['budget']} {table['unit']}{left_out}; "
        f"best {table['objective']} {100 * best['value']:.1f}, without the sweep "
        f"{100 * base['value']:.1f}"
    )


def log(place: Path, output: claims.Output, table: Mapping[str, Any]) -> None:
    """One run for the sweep, with a child for each of its best configurations."""
    rows = table["trials"]
    best = rows[table["best"]]
    numbers = {
        f"best/{table['objective']}": best["value"],
        f"base/{table['objective']}": rows[0]["value"],
        "configurations": len(rows),
        "failed": len(table["failed"]),
    }
    if table["held_out"] is not None:
        numbers["held_out/best"] = table["held_out"]["value"]
        numbers["held_out/base"] = table["held_out"]["base"]
    with experiment_log.run(place, f"sweep {output.path.name}", output.config) as run:
        run.metrics(numbers)
        run.artifacts(output.path / BEST, output.path / TABLE, output.path / PAGE)
        full = [row for row in rows if row["budget"] == table["budget"]]
        ranked = sorted(full, key=lambda row: -row["value"])
        for row in ranked[:_CHILD_RUNS]:
            # Short, for MLflow's page writes it large; the values are parameters there.
            name = f"{table['objective']} {100 * row['value']:.1f}, number {row['number']}"
            with experiment_log.run(place, name, row["values"], parent=run) as child:
                child.metrics({table["objective"]: row["value"], **row["metrics"]})
