"""The best training: every trial trains and is evaluated, and a poor one stops early."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from idol.config import Config, to_dict
from pipelines import cluster
from pipelines.report import experiment_log
from pipelines.stages import evaluate, train
from pipelines.storage import claims, manifest, paths
from pipelines.storage.manifest import Manifest
from pipelines.storage.paths import AnyPath
from pipelines.storage.sweep_report import Configuration, Ledger, Trial
from pipelines.sweep import every_sweep, objective, space
from pipelines.sweep.every_sweep import Sweep
from pipelines.sweep.objective import Objective
from pipelines.training.initial_model import Start
from pipelines.training.workers import Workers

STAGE = "train-sweep"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSweep(Sweep):
    """What is asked for; the first rung of the search counts steps.

    pairs:         a finished output of pairs.run, to train on
    annotations:   annotation JSON with truth, to evaluate on; other videos than those of pairs
    weights:       what every trial starts from (idol.load); None: random
    reset_classes: give class heads for other categories random weights
    workers:       data-parallel processes of a trial; 0: inside the process of the trial
    gpus:          one GPU for each of them
    reject_limit:  share of the videos of annotations that may have a fault, as of evaluate.run
    """

    base: Config
    pairs: AnyPath
    annotations: str
    weights: str | None = None
    reset_classes: bool = False
    workers: int = 1
    gpus: bool = False
    reject_limit: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingTrials:
    """The workload of a training sweep.

    place: gets a folder per configuration, on storage that all machines see
    """

    unit: ClassVar[str] = "steps"

    wanted: TrainingSweep
    goal: Objective
    place: AnyPath

    @property
    def rungs(self) -> Sequence[int]:
        """Numbers of steps that a configuration passes through, the last of which is all."""
        return self.wanted.search.rungs(self.wanted.base.train.steps)

    @property
    def cpus(self) -> float:
        """1 where a worker trains by itself; little where it waits for training processes."""
        return 0.1 if self.wanted.workers else 1.0

    @property
    def reads(self) -> Sequence[AnyPath]:
        """The pairs and the annotations."""
        return self.wanted.pairs, paths.at(self.wanted.annotations)

    def config(self, values: Mapping[str, Any]) -> Config:
        """The configuration with these values."""
        return space.applied(self.wanted.base, values)

    def identify(self, values: Mapping[str, Any]) -> str:
        """The hash of the configuration with these values; ValueError: they do not go together."""
        return manifest.hash_value(to_dict(self.config(values)))

    def load(self) -> None:
        """Nothing: every trial reads its pairs."""

    def folder(self, of: Configuration) -> AnyPath:
        """Where the configuration's checkpoint and evaluations are."""
        return self.place / f"trial-{of.number:04d}-{of.hash[:8]}"

    def measure(self, loaded: None, of: Configuration, after: int) -> Iterator[Trial]:
        """Train on to each rung, then evaluate. What is there already is not done again."""
        wanted, config, folder = self.wanted, self.config(of.values), self.folder(of)
        folder.mkdir(parents=True, exist_ok=True)
        for budget in self.rungs if of.number else self.rungs[-1:]:
            if budget <= after:
                continue
            weights = train.advance(
                wanted.pairs,
                folder / "train",
                config,
                budget,
                Start(weights=wanted.weights, reset_classes=wanted.reset_classes),
                Workers(count=wanted.workers, gpus=wanted.gpus),
            )
            done = evaluate.run(
                evaluate.Request(annotations=wanted.annotations, checkpoint=str(weights)),
                folder / f"evaluate-{budget}",
                actors=max(1, wanted.workers) if wanted.gpus else 1,
                gpu=wanted.gpus or None,
                reject_limit=wanted.reject_limit,
                log=False,
            )
            metrics = dict(done.extra["metrics"])
            yield Trial(
                number=of.number,
                hash=self._really_used(weights, config),
                values=of.values,
                budget=budget,
                value=self.goal.of(metrics),
                metrics=metrics,
            )

    def held_out(self, full: Sequence[Trial]) -> None:
        """None: the videos that judge a training are not trained on."""

    def _really_used(self, weights: AnyPath, config: Config) -> str:
        """The hash of the configuration that the checkpoint carries, which is the trained one."""
        from idol.weights import checkpoint

        with paths.local_file(weights) as file:
            carried, asked = to_dict(checkpoint.read(file)[0]), to_dict(config)
        # Training fills these in from the data set.
        for name in ("categories", "category_ids", "pairs"):
            carried[name] = asked[name]
        for name in ("num_classes", "num_identities"):
            carried["model"][name] = asked["model"][name]
        return manifest.hash_value(carried)


def run(
    wanted: TrainingSweep,
    out: AnyPath,
    *,
    max_concurrent: int | None = None,
    time_budget: float | None = None,
    overwrite: bool = False,
    log_to: AnyPath | None = None,
) -> Manifest:
    """Search for the best training.

    out:       gets best.json (its "set" is for --set of jobs.train), report.json, report.html, and
               a folder for each configuration with its checkpoint and evaluations
    max_concurrent: trials at the same time; default: as many as the cluster has room for
    time_budget, overwrite, log_to, returns, Raises: as of tracker_sweep.run
    """
    source = manifest.read(wanted.pairs, "prepare")
    goal = _checked_goal(wanted)
    claim = wanted.to_dict()
    output = claims.prepare_output(out, STAGE, claim, source.hash, overwrite=overwrite)
    if output.finished is not None:
        return output.finished
    manifest.commit_json({"train": claim}, out / every_sweep.SETTINGS)
    ledger = Ledger(out / every_sweep.LEDGER, manifest.hash_value([source.hash, claim]))
    place = out / "trials" / manifest.hash_value(claim)[:8]
    trials = TrainingTrials(wanted, goal, place.resolve())
    with experiment_log.run(log_to or out, f"sweep {out.name}", output.config) as log:
        with cluster.session():
            count = max_concurrent or _room(wanted)
            best, report = every_sweep.search(
                wanted, trials, ledger, log, max_concurrent=count, time_budget=time_budget
            )
        assignments = [f"{key}={json.dumps(value)}" for key, value in best.values.items()]
        flags = " ".join(f"--set '{text}'" for text in assignments)
        command = f"python -m jobs.train --pairs {wanted.pairs} --out RUN {flags}"
        return every_sweep.finish(
            output,
            report,
            title="Training sweep",
            name=f"{len(report.trials)} trainings",
            best={
                "set": assignments,
                "checkpoint": str(trials.folder(best) / "train" / train.WEIGHTS),
                "config": to_dict(trials.config(best.values)),
            },
            commands={"train with the best": command},
            log=log,
        )


def _checked_goal(wanted: TrainingSweep) -> Objective:
    """What is maximised, once all that can be checked before the first training is checked."""
    wanted.search.planned(wanted.space)  # refuses a grid over a range
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
    evaluate.check_truth(wanted.annotations)
    return goal


def _room(wanted: TrainingSweep) -> int:
    """Trials that fit side by side, with room for what evaluates them."""
    share = max(1, wanted.workers)
    fitting = cluster.gpus() // share if wanted.gpus else (cluster.cpus() - 1) // (2 * share)
    return max(1, fitting)
