"""What every sweep does: it keeps what was asked, searches, and writes report, page and log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, get_type_hints

from idol.addresses import shown
from idol.config import Config, TrackerConfig, from_dict, to_dict
from pipelines.errors import ManifestError, PipelineError
from pipelines.report import experiment_log, page, run_page
from pipelines.storage import manifest, paths
from pipelines.storage.claims import Output
from pipelines.storage.layout import PAGE, REPORT
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.sweep_report import Ledger, SweepReport, Trial
from pipelines.sweep import space, tuning
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Space
from pipelines.sweep.workload import Workload

BEST = "best.json"
FILES = {"best": BEST, "table": REPORT, "page": PAGE}
"""Files of a finished directory, by the names that the job prints them under."""
LEDGER = "ledger.jsonl"
SETTINGS = "settings.json"
"""What was asked for, so that an unfinished sweep can go on from its directory alone."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What is asked for.

    base:  the configuration whose fields are replaced, and that is compared with
    space: "section.field" -> values, kept in the order of the names: numbers and draws of
           configurations follow it, and a sweep that goes on reads it from sorted JSON
    """

    base: TrackerConfig | Config
    space: Space
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", dict(sorted(self.space.items())))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with absolute paths, and addresses without their secrets."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)} | {
            "base": to_dict(self.base),
            "space": space.to_dict_of(self.space),
            "search": asdict(self.search),
        }
        absolute = {k: str(v.resolve()) if isinstance(v, AnyPath) else v for k, v in plain.items()}
        return {k: shown(v) if isinstance(v, str) else v for k, v in absolute.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of to_dict."""
        types = get_type_hints(cls)
        values: dict[str, Any] = {
            **plain,
            **{name: paths.at(value) for name, value in plain.items() if types[name] == AnyPath},
            "base": from_dict(types["base"], plain["base"]),
            "space": space.from_dict(plain["space"]),
            "search": SearchConfig(**plain["search"]),
        }
        return cls(**values)


def read_settings(out: AnyPath) -> dict[str, Any]:
    """What was asked for when the sweep here was started; ManifestError: there is none."""
    path = out / SETTINGS
    if not path.is_file():
        reason = f"holds no sweep to go on with ({SETTINGS} is missing)"
        todo = "Start one: leave out --resume, and give --evaluation or --pairs."
        raise ManifestError(str(out), reason, todo)
    return manifest.load_json(path)


def search(
    wanted: Sweep, workload: Workload, ledger: Ledger, log: experiment_log.Log, **how: Any
) -> tuple[Trial, SweepReport]:
    """Try what the ledger lacks.

    how:     max_concurrent and time_budget of tuning.run
    returns: the best trial, the first of equals (so the base where nothing beats it); the report
    Raises: PipelineError: the base, or all others, failed.
    """
    # The base is listed with its own values, so that charts over a field have it too.
    base = wanted.base if isinstance(wanted.base, Config) else Config(tracker=wanted.base)
    own = {key: space.value_of(base, key) for key in wanted.space}
    notes = [f"{reason}." for reason in space.idle(wanted.space, base)]
    notes += _no_held_out(wanted.search, workload)
    for note in notes:
        _log.warning(note)
    trials, failed = tuning.run(wanted.space, wanted.search, workload, ledger, log=log, **how)
    total, whole = wanted.search.planned(wanted.space), workload.rungs[-1]
    if not trials or trials[0].number != 0 or (len(trials) == 1 and total > 1):
        causes = [*(failure.reason for failure in failed), "none was told"]
        raise PipelineError(
            f"{len(trials)} of {total} configurations were finished. They are kept: mend the "
            f"cause, then run the same command. The first error: {causes[0]}"
        )
    if how.get("time_budget") and len(trials) + len(failed) < total:
        notes.append(f"The time was over after {len(trials)} of {total} configurations.")
        _log.warning(notes[-1])
    full = [trial for trial in trials if trial.budget == whole]
    best = max(full, key=lambda trial: (trial.value, -trial.number))
    if failed:
        values = " ".join(f"{key}={value}" for key, value in failed[0].values.items())
        tried = f"{len(failed)} of {len(failed) + len(trials)} configurations were left out"
        notes.append(f"{tried}; the first, {values}: {failed[0].reason}.")
        _log.warning("%s All are listed in %s", notes[-1], ledger.path.parent / REPORT)
    return best, SweepReport(
        objective=wanted.search.objective,
        budget=whole,
        unit=workload.unit,
        best=trials.index(best),
        trials=[replace(t, values=space.without_section(t.values or own)) for t in trials],
        held_out=workload.held_out(full),
        failed=failed,
        notes=notes,
    )


def _no_held_out(settings: SearchConfig, workload: Workload) -> list[str]:
    """Why there will be no held-out score, where one was asked for."""
    videos = workload.rungs[-1]
    if not settings.folds or workload.unit != "videos" or videos >= 2 * settings.folds:
        return []
    todo = f"--folds {videos // 2} would do" if videos >= 4 else "evaluate more videos"
    return [
        f"There is no held-out score: {settings.folds} folds need {2 * settings.folds} videos, "
        f"there are {videos}; {todo}."
    ]


def finish(
    output: Output,
    report: SweepReport,
    *,
    title: str,
    name: str,
    best: Mapping[str, Any],
    commands: Mapping[str, str] | None = None,
    log: experiment_log.Log,
) -> Manifest:
    """Write report.json, best.json, the page, and the manifest.

    name: of the sweep in the page
    best: what best.json holds besides trials
    log:  gets the numbers and the files
    """
    table = report.to_dict()
    listed = table["trials"]
    summary = {"objective": report.objective, "best": listed[report.best], "base": listed[0]}
    counts = {"configurations": len(report.trials), "failed": len(report.failed)}
    extra = {**summary, "held_out": table["held_out"], **counts}
    if report.unit == "videos":  # a training is judged by videos that it has not seen anyway
        summary["held_out"] = table["held_out"]
    left_out = f", {len(report.failed)} left out" if report.failed else ""
    best_value, base_value = report.trials[report.best].value, report.trials[0].value
    sentence = (
        f"{len(report.trials)} configurations of {report.budget} {report.unit}{left_out}; "
        f"best {report.objective} {100 * best_value:.1f}, without the sweep {100 * base_value:.1f}"
    )
    manifest.commit_json(table, output.path / REPORT)
    manifest.commit_json({**best, **summary}, output.path / BEST)
    page.write(
        output.path / PAGE,
        page.Report(
            title=title,
            summary=sentence,
            config=summary | {"failed": table["failed"]},
            commands=commands or {},
            **run_page.sweep_part(report, name),
        ),
    )
    numbers = {f"best/{report.objective}": best_value, f"base/{report.objective}": base_value}
    if (held_out := report.held_out) is not None:
        numbers |= {"held_out/best": held_out.value, "held_out/base": held_out.base}
    log.metrics({**numbers, **counts})
    log.artifacts(*(output.path / file for file in FILES.values()))
    return output.finish(rows=len(report.trials), extra=extra)
