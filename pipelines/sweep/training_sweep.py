"""Training hyper-parameters: every trial trains and is evaluated, and a poor one stops early."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from idol.config import Config, from_dict, to_dict
from pipelines import cluster
from pipelines.report import page, run_page
from pipelines.stages import evaluate, train
from pipelines.storage import claims, layout, manifest
from pipelines.storage.manifest import Manifest
from pipelines.sweep import objective, tracker_sweep
from pipelines.sweep import space as search_space
from pipelines.sweep.ledger import Ledger
from pipelines.sweep.objective import Objective
from pipelines.sweep.search import Job, SearchConfig
from pipelines.sweep.space import Space

STAGE = "train-sweep"
FILES = tracker_sweep.FILES
"""What a finished directory holds, by the name that the job prints it under."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSweep:
    """What is asked for.

    pairs:         a finished output of pairs.run, to train on
    annotations:   annotation JSON with truth, to evaluate on; other videos than those of pairs
    base:          the configuration whose fields are replaced, and that is compared with
    space:         "train.field" or field of losses, assignment, transforms, model -> values
    search:        how to search; its first_rung counts steps
    weights:       what every trial starts from (idol.load); None: random
    reset_classes: start class heads of another size anew
    workers:       data-parallel processes of a trial; 0: inside the trial's own
    gpus:          one GPU for each of them
    """

    pairs: Path
    annotations: str
    base: Config
    space: Space
    search: SearchConfig
    weights: str | None = None
    reset_classes: bool = False
    workers: int = 1
    gpus: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "pairs": str(self.pairs.resolve()),
            "annotations": self.annotations,
            "base": to_dict(self.base),
            "space": search_space.to_dict_of(self.space),
            "search": asdict(self.search),
            "weights": self.weights,
            "reset_classes": self.reset_classes,
            "workers": self.workers,
            "gpus": self.gpus,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TrainSweep:
        """The inverse of to_dict."""
        return cls(
            **{
                **plain,
                "pairs": Path(plain["pairs"]),
                "base": from_dict(Config, plain["base"]),
                "space": search_space.from_dict(plain["space"]),
                "search": SearchConfig(**plain["search"]),
            }
        )


@dataclass(frozen=True, slots=True)
class TrainingTrials:
    """The workload of a training sweep (sweep_workers.Workload).

    wanted: what is asked for
    goal:   what is maximised
    place:  gets a folder per trial, on storage that all machines see
    """

    wanted: TrainSweep
    goal: Objective
    place: str

    @property
    def budget(self) -> int:
        """Steps of a whole training."""
        return self.wanted.base.train.steps

    @property
    def cpus(self) -> float:
        """A trial waits for its training workers, which hold a CPU or GPU each; or is the one."""
        return 0.1 if self.wanted.workers else 1.0

    def config(self, values: Mapping[str, Any]) -> Config:
        """The configuration with these values."""
        return search_space.applied(self.wanted.base, values)

    def identify(self, values: Mapping[str, Any]) -> str:
        """Names the configuration with these values by every field of it.

        Errors: ValueError for values that do not go together
        """
        return manifest.hash_value(to_dict(self.config(values)))

    def load(self) -> None:
        """Every trial reads its pairs by itself."""

    def measure(self, loaded: None, job: Job) -> dict[str, Any]:
        """Train on to the job's steps, then evaluate: a row of the ledger."""
        wanted = self.wanted
        config = self.config(job.values)
        folder = Path(self.place) / f"trial-{job.number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        weights = train.advance(
            wanted.pairs,
            folder / "train",
            config,
            job.budget,
            weights=wanted.weights,
            reset_classes=wanted.reset_classes,
            workers=wanted.workers,
            gpus=wanted.gpus,
        )
        done = evaluate.run(
            evaluate.Request(annotations=wanted.annotations, checkpoint=weights),
            folder / f"evaluate-{job.budget}",
            actors=max(1, wanted.workers) if wanted.gpus else 1,
            gpu=wanted.gpus or None,
            log=False,
        )
        metrics = dict(done.extra["metrics"])
        return job.row(self.goal.of(metrics), metrics, [], self._really_used(weights, config))

    def _really_used(self, weights: Path, config: Config) -> str:
        """The hash of the configuration that the checkpoint carries, which is the trained one."""
        from idol.weights import checkpoint

        carried = to_dict(checkpoint.read(weights)[0])
        asked = to_dict(config)
        # Training fills these in from the data set.
        for name in ("categories", "category_ids"):
            carried[name] = asked[name]
        for name in ("num_classes", "num_identities"):
            carried["model"][name] = asked["model"][name]
        return manifest.hash_value(carried)


def run(
    wanted: TrainSweep,
    out: Path,
    *,
    processes: int | None = None,
    overwrite: bool = False,
    log_to: Path | None = None,
) -> Manifest:
    """Search for the best training.

    out:       gets best.json (its "set" is for --set of jobs.train), report.json, report.html, and
               a folder for each trial with its checkpoint and evaluations
    processes: trials at the same time; default: as many as the cluster has room for
    overwrite: replace another sweep in out; trials of other settings are not looked at
    log_to:    folder of the MLflow file; default: out
    returns:   the manifest; its extra holds the best trial and the base's
    Errors:    ManifestError; ValueError for a bad objective or space; PipelineError where the
               search could not be finished (what is done is kept, and the same call does the rest)
    """
    source = manifest.read(wanted.pairs, "prepare")
    total = tracker_sweep.planned(wanted.search, wanted.space)
    goal = objective.parse(wanted.search.objective, occlusion=True)
    if goal.tracking:
        raise ValueError(
            f"a training is judged by what jobs.evaluate reports, which lacks "
            f"{wanted.search.objective}: choose AP, AP50, AR10, ..."
        )
    if "train.steps" in wanted.space:
        raise ValueError(
            "train.steps is what a trial may spend, and cannot be swept: set it for all with --set"
        )
    # What is wrong with the data should not be found after the first training.
    evaluate.check_truth(wanted.annotations)
    claim = wanted.to_dict()
    output = claims.prepare_output(out, STAGE, claim, source.hash, overwrite=overwrite)
    if output.finished is not None:
        return output.finished
    manifest.commit_json({"train": claim}, out / tracker_sweep.SETTINGS)
    ledger = Ledger(out / tracker_sweep.LEDGER, manifest.hash_value([source.hash, claim]))
    place = out / "trials" / manifest.hash_value(claim)[:8]
    trials = TrainingTrials(wanted, goal, str(place.resolve()))
    with cluster.session(dashboard=True):
        failed, errors = tracker_sweep.search(
            wanted.space, wanted.search, trials, ledger, processes or _room(wanted), total
        )
    rows = tracker_sweep.finished_rows(ledger, failed, errors, total)
    full = [row for row in rows if row["budget"] == trials.budget]
    best = max(full, key=lambda row: (row["value"], -row["number"]))
    own = {key: _value(wanted.base, key) for key in wanted.space}
    names = ("number", "hash", "budget", "value", "metrics")
    table: dict[str, Any] = {
        "objective": goal.name,
        "budget": trials.budget,
        "unit": "steps",
        "best": rows.index(best),
        "trials": [
            {**{name: row[name] for name in names}, "values": row["values"] or own} for row in rows
        ],
        "held_out": None,
        "failed": list(failed),
    }
    chosen = table["trials"][table["best"]]
    summary = {"objective": goal.name, "best": chosen, "base": table["trials"][0]}
    assignments = [f"{key}={json.dumps(value)}" for key, value in best["values"].items()]
    weights = place / f"trial-{best['number']:04d}" / "train" / train.WEIGHTS
    manifest.commit_json(table, out / layout.REPORT)
    manifest.commit_json(
        {
            **summary,
            "set": assignments,
            "checkpoint": str(weights.resolve()),
            "config": to_dict(trials.config(best["values"])),
        },
        out / tracker_sweep.BEST,
    )
    page.write(
        out / layout.PAGE,
        page.Report(
            title="Training sweep",
            summary=tracker_sweep.sentence(table),
            sweep=run_page.sweep_rows(table),
            sweep_metric=goal.name,
            sweep_name=f"{len(rows)} trainings",
            config=summary | {"failed": failed},
            commands={
                "train with the best": f"python -m jobs.train --pairs {wanted.pairs} --out RUN "
                + " ".join(f"--set '{assignment}'" for assignment in assignments)
            },
        ),
    )
    tracker_sweep.log(log_to or out, output, table)
    return output.finish(
        rows=len(rows),
        extra={**summary, "configurations": len(rows), "failed": len(failed), "held_out": None},
    )


def _room(wanted: TrainSweep) -> int:
    """Trials that fit side by side, with room for what evaluates them."""
    share = max(1, wanted.workers)
    if wanted.gpus:
        return max(1, cluster.gpus() // share)
    return max(1, (cluster.cpus() - 1) // (2 * share))


def _value(config: Config, key: str) -> Any:
    node: Any = to_dict(config)
    for part in key.split("."):
        node = node[part]
    return node
