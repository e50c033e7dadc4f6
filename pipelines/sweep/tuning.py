"""A search by Ray Tune: every configuration is a trial, in processes that load once."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import cluster, preflight, resources
from pipelines.errors import origin
from pipelines.report.experiment_log import Log
from pipelines.storage import paths
from pipelines.storage.paths import AnyPath
from pipelines.storage.sweep_report import Failure, Ledger, Trial, furthest
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Space
from pipelines.sweep.workload import Workload

if TYPE_CHECKING:
    from ray.tune import ResultGrid

    from pipelines.sweep.proposals import Proposals
    from pipelines.sweep.trainable import Recorder

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints on stdout, which is for the last line
    # Files of each result (CSV, JSON, TensorBoard) and of the search's state: the ledger has them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # annotations may have a path that is relative to the job's
    # With a handler of its own for Ctrl-C, Tune ends as if nothing were left to try.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
_log = logging.getLogger(__name__)
_RETRIES = 1  # of a trial whose process died, or that raised


def run(
    space: Space,
    settings: SearchConfig,
    workload: Workload,
    ledger: Ledger,
    *,
    log: Log | None = None,
    max_concurrent: int | None = None,
    time_budget: float | None = None,
) -> tuple[list[Trial], list[Failure]]:
    """Go on with a search from its ledger until nothing is left to try, or the time is over.

    Tuner.restore is not used to go on: it knows only what its last snapshot had, and reads pickles,
    which run whatever somebody has put there. The ledger has every result, as text: the search is
    made again, and told what is there already.

    max_concurrent: trials at the same time; default: half of the logical CPUs
    time_budget:    seconds after which no trial goes on
    returns:        as of results
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    total = settings.planned(space)
    with (
        cluster.session(),
        tempfile.TemporaryDirectory(prefix="idol-tune-", ignore_cleanup_errors=True) as unused,
    ):
        from ray.exceptions import RayActorError

        count = min(max_concurrent or cluster.cpus() // 2 or 1, total)
        resources.require(count, workload.cpus, instead="a smaller --max-concurrent")
        preflight.check(ledger.path.parent, workload.reads)
        loaded = workload.load()
        asked = (space, settings, workload, ledger, loaded)
        for again in (time_budget is None, False):
            grid, search, recorder = _search(*asked, log, count, time_budget, unused)
            lost = sum(isinstance(origin(found.error), RayActorError) for found in grid)
            if not lost or not again:
                break
            # Tune counts the death of a process once for each call that waited for it, so a trial
            # may be given up at once. On from the ledger: a machine's fault is not repeated.
            _log.warning("%d configurations were lost with their processes: again", lost)
        recorder.log_best()
        return results(grid, ledger.read(), search.refused, search.values)


def _search(
    space: Space,
    settings: SearchConfig,
    workload: Workload,
    ledger: Ledger,
    loaded: Any,
    log: Log | None,
    count: int,
    time_budget: float | None,
    unused: str,
) -> tuple[ResultGrid, Proposals, Recorder]:
    """One run of Ray Tune over what the ledger lacks; unused: a folder for what Tune writes."""
    from ray import tune

    from pipelines.sweep import proposals, trainable

    known, total = ledger.read(), settings.planned(space)
    kind = tune.with_parameters(trainable.SweepTrial, workload=workload, loaded=loaded, known=known)
    search = proposals.Proposals(space, settings, workload, furthest(known))
    recorder = trainable.Recorder(workload, ledger, log, settings.objective)
    grid = tune.Tuner(
        tune.with_resources(kind, {"cpu": workload.cpus}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=_scheduler(settings, workload.rungs[-1]),
            num_samples=total,
            max_concurrent_trials=count,
            reuse_actors=True,
            time_budget_s=time_budget,
            trial_name_creator=trainable.name,
            trial_dirname_creator=trainable.name,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{len(known)}",
            **_storage(workload.place, unused),
            callbacks=[recorder],
            progress_reporter=trainable.Table(settings.objective, workload.unit, total),
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            verbose=1,
        ),
    ).fit()
    return grid, search, recorder


def results(
    grid: ResultGrid,
    known: Iterable[Trial] = (),
    refused: Iterable[Failure] = (),
    values: Mapping[int, Mapping[str, Any]] | None = None,
) -> tuple[list[Trial], list[Failure]]:
    """Of a finished run of Ray Tune, with what was known before it, and what was refused.

    values:  of the configurations by their numbers: a trial that never gave a result has none
    returns: the trial with the largest budget of each configuration, in the order of the search;
             what was left out
    """
    trials = [Trial.from_dict(found.metrics) for found in grid if "hash" in found.metrics]
    failed = [_failure(found, values or {}) for found in grid if found.error is not None]
    return furthest([*known, *trials]), [*failed, *refused]


def _failure(found: Any, values: Mapping[int, Mapping[str, Any]]) -> Failure:
    error = origin(found.error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    number = int(Path(found.path).name)  # see trainable.name
    return Failure(values=dict(values.get(number, {})), reason=reason)


def _storage(place: AnyPath | None, unused: str) -> dict[str, Any]:
    """Where Tune keeps its files: of no use later, unless trials have checkpoints."""
    from ray import tune

    system, path = paths.native(place or unused)
    kept = tune.CheckpointConfig(checkpoint_frequency=int(bool(place)), checkpoint_at_end=False)
    return {"storage_filesystem": system, "storage_path": path, "checkpoint_config": kept}


def _scheduler(settings: SearchConfig, whole: int) -> Any:
    from ray.tune import schedulers

    if settings.scheduler == "fifo":
        return schedulers.FIFOScheduler()
    return schedulers.ASHAScheduler(
        time_attr="budget",
        metric="value",
        mode="max",
        max_t=whole,
        grace_period=min(settings.grace_period, whole),
        reduction_factor=settings.reduction_factor,
    )
