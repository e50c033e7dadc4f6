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
    passes: int = 3,
) -> tuple[list[Trial], list[Failure]]:
    """Go on with a search from its ledger until nothing is left to try, or the time is over.

    Tuner.restore is not used to go on: it knows only what its last snapshot had, and reads pickles,
    which run whatever somebody has put there. The ledger has every result, as text: the search is
    made again, and told what is there already.

    max_concurrent: trials at the same time; default: half of the logical CPUs
    time_budget:    seconds after which no trial goes on; there is one pass then
    passes:         how often at most, where trials are lost with their processes
    returns:        as of results
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    known, total = ledger.read(), settings.planned(space)
    with (
        cluster.session(),
        tempfile.TemporaryDirectory(prefix="idol-tune-", ignore_cleanup_errors=True) as unused,
    ):
        from ray import tune

        from pipelines.sweep import proposals, trainable

        count = min(max_concurrent or cluster.cpus() // 2 or 1, total)
        resources.require(count, workload.cpus, instead="a smaller --max-concurrent")
        preflight.check(ledger.path.parent, workload.reads)
        kind = tune.with_parameters(
            trainable.SweepTrial, workload=workload, loaded=workload.load(), known=known
        )
        search = proposals.Proposals(space, settings, workload, furthest(known))
        recorder = trainable.Recorder(workload, ledger, log, settings.objective, _RETRIES)
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
        if recorder.lost and time_budget is None and passes > 1:
            # Tune tries a trial again whose process died at work, but not while it took up its
            # configuration. It is the machine's fault, not the configuration's: on from the ledger.
            _log.warning("%d configurations were lost with their processes: again", recorder.lost)
            again: dict[str, Any] = {"log": log, "max_concurrent": count, "passes": passes - 1}
            return run(space, settings, workload, ledger, **again)
        return results(grid, known, search.refused, search.values)


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
