"""A search spread over Ray Tune: few long trials, each of which scores many configurations."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idol.config import Config, TrackerConfig, to_dict
from idol.truth import VideoTruth
from pipelines import cluster, manifest, objective, search_space, sweep_scoring
from pipelines.objective import Objective
from pipelines.search import Job, Outcome, Search, SearchConfig
from pipelines.search_space import Space
from pipelines.stored import StoredDetections
from pipelines.sweep_scoring import MissedVideo

_POLL_S = 0.1  # a worker without a job asks again: another may have to die or finish first
_RESTARTS = 20  # of one trial, each for a process that died or a configuration that failed


@dataclass(frozen=True, slots=True)
class Material:
    """What every worker reads and knows.

    source: stored detections
    truths: video_id -> truth without masks, of the videos that have detections
    missed: video_id -> the others
    order:  all video ids, in the order in which they join
    base:   the configuration whose fields the search replaces
    """

    source: StoredDetections
    truths: Mapping[int, VideoTruth]
    missed: Mapping[int, MissedVideo]
    order: Sequence[int]
    base: TrackerConfig


def identify(base: TrackerConfig, floor: float, values: Mapping[str, Any]) -> str:
    """Names the configuration with these values by every field of it.

    floor:  score below which nothing was stored
    Errors: ValueError for values that do not go together, or ask for what was not stored
    """
    config = applied(base, values)
    if config.score_threshold < floor:
        raise ValueError(
            f"score_threshold {config.score_threshold:g} lies below the {floor:g} that was stored"
        )
    return hash_of(config)


def applied(base: TrackerConfig, values: Mapping[str, Any]) -> TrackerConfig:
    """The tracker with these values.

    values: "tracker.field" -> value
    """
    return search_space.applied(Config(tracker=base), values).tracker


def hash_of(config: TrackerConfig) -> str:
    """Names a tracker configuration by every field of it."""
    return manifest.hash_value(to_dict(config))


def run(
    space: Space,
    settings: SearchConfig,
    goal: Objective,
    material: Material,
    known: Iterable[Outcome],
    place: Path,
    *,
    identified: Callable[[Mapping[str, Any]], str],
    on_result: Callable[[dict[str, Any]], None],
    processes: int | None,
    total: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Search until nothing is left to try.

    known:      what an earlier run has found
    place:      a folder for Tune's own files, emptied before and after
    identified: see Search
    on_result:  called here with every result: number, hash, values, videos, value, metrics, folds
    processes:  workers; default: half of the logical CPUs
    total:      configurations still to come, for the bar and the number of workers
    returns:    what was left out (Search.failures), and the errors of trials that gave up
    """
    # Tune would write every result three more times, as CSV, JSON and TensorBoard events, and draw
    # its own tables on stdout.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    shutil.rmtree(place, ignore_errors=True)
    with cluster.session(), cluster.progress(total, "sweep", "configurations") as bar:
        import ray
        from ray import tune

        count = max(1, min(processes or cluster.cpus() // 2, total))
        cluster.require(count)
        searcher = ray.remote(num_cpus=0)(_Searcher).remote(
            space, settings, len(material.order), identified, list(known)
        )

        class Listener(tune.Callback):  # type: ignore[misc]
            """Runs in this process: all that it needs is in it, for Tune pickles its class."""

            def __init__(
                self, on_result: Callable[[dict[str, Any]], None], enter: Callable[[str], None]
            ) -> None:
                self.on_result, self.enter = on_result, enter

            def __getstate__(self) -> dict[str, Any]:
                return {}  # a progress bar cannot be pickled, and need not

            def on_trial_result(
                self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
            ) -> None:
                self.on_result(result)

            def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **i: Any) -> None:
                self.enter(trial.config["worker"])

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **i: Any) -> None:
                self.enter(trial.config["worker"])

        def take(result: dict[str, Any]) -> None:
            _verify(result, material.base)
            on_result(result)
            bar.update()

        def enter(worker: str) -> None:
            ray.get(searcher.enter.remote(worker))

        found = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(
                    _work, material=material, settings=settings, goal=goal, searcher=searcher
                ),
                {"cpu": 1},
            ),
            param_space={"worker": tune.grid_search([f"worker-{i}" for i in range(count)])},
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(place.resolve()),
                callbacks=[Listener(take, enter)],
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                verbose=0,
            ),
        ).fit()
        failures = ray.get(searcher.failures.remote())
    shutil.rmtree(place, ignore_errors=True)
    return failures, [str(error) for error in found.errors]


def _verify(result: Mapping[str, Any], base: TrackerConfig) -> None:
    """The hash is of the configuration that the worker scored with: it must be the asked one."""
    asked = hash_of(applied(base, result["values"]))
    if result["config_hash"] != asked or result["hash"] != asked:
        raise RuntimeError(
            f"a worker scored another configuration than {result['values']}: its hash is "
            f"{result['config_hash']}, not {asked}"
        )


class _Searcher:
    """The search in an actor, for the workers to ask."""

    def __init__(
        self,
        space: Space,
        settings: SearchConfig,
        videos: int,
        identified: Callable[[Mapping[str, Any]], str],
        known: Sequence[Outcome],
    ) -> None:
        self.search = Search(space, settings, videos, identified, known)

    def enter(self, worker: str) -> None:
        self.search.enter(worker)

    def next(self, worker: str, value: float | None) -> tuple[Job | None, bool]:
        """Take the value of the worker's last job; its next one, and whether all is over."""
        if value is not None:
            self.search.tell(worker, value)
        job = self.search.next(worker)
        return job, job is None and self.search.over

    def fault(self, worker: str, reason: str) -> None:
        self.search.fault(worker, reason)

    def failures(self) -> list[dict[str, Any]]:
        return self.search.failures()


def _work(
    space: Mapping[str, Any],
    material: Material,
    settings: SearchConfig,
    goal: Objective,
    searcher: Any,
) -> None:
    """The trial: load once, then one configuration after the other."""
    import ray
    import torch
    from ray import tune

    torch.set_num_threads(1)
    worker = space["worker"]
    ray.get(searcher.enter.remote(worker))
    videos = sweep_scoring.load(material.source, material.truths, material.missed, material.order)
    value: float | None = None
    while True:
        job, over = ray.get(searcher.next.remote(worker, value))
        value = None
        if over:
            return
        if job is None:
            time.sleep(_POLL_S)
            continue
        try:
            result = measure(videos, job, material, settings, goal)
        except Exception as error:
            # Said before the process is lost to it: the search must not try this one again.
            ray.get(searcher.fault.remote(worker, f"{type(error).__name__}: {error}"))
            raise
        value = result["value"]
        tune.report(result)


def measure(
    videos: sweep_scoring.Videos,
    job: Job,
    material: Material,
    settings: SearchConfig,
    goal: Objective,
) -> dict[str, Any]:
    """Score one configuration: its row of the ledger, and the hash of what was really used."""
    config = applied(material.base, job.values)
    chosen = material.order[: job.videos]
    matches, counts = sweep_scoring.score(
        videos, chosen, config, material.source.category_ids, tracking=goal.tracking
    )
    metrics = objective.stats(matches, counts)
    folds: list[float] = []
    if settings.folds and job.videos == len(material.order):
        weights = sweep_scoring.fold_weights(material.order, settings.folds)
        folds = sweep_scoring.without_folds(matches, counts, goal, weights)
    return {
        "number": job.number,
        "hash": job.hash,
        "values": job.values,
        "videos": job.videos,
        "value": goal.of(metrics),
        "metrics": metrics,
        "folds": folds,
        "config_hash": hash_of(config),
    }
