"""A search spread over Ray Tune: few long trials, each of which does many configurations."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines import cluster
from pipelines.sweep.search import Job, Outcome, Search, SearchConfig
from pipelines.sweep.space import Space

_POLL_S = 0.1  # a worker without a job asks again: another may have to die or finish first
_RESTARTS = 20  # of one trial, each for a process that died or a configuration that failed


class Workload(Protocol):
    """What is done with a configuration; sent to every worker.

    budget: videos of the data set, or steps of a whole training
    cpus:   that one worker holds
    """

    @property
    def budget(self) -> int: ...
    @property
    def cpus(self) -> float: ...

    def identify(self, values: Mapping[str, Any]) -> str:
        """Names the configuration with these values; ValueError where they do not go together."""

    def load(self) -> Any:
        """What a worker reads once, before its first job."""

    def measure(self, loaded: Any, job: Job) -> dict[str, Any]:
        """Do a job: number, hash, values and budget of it; value and metrics; and config_hash, the
        name of the configuration that was really used."""


def run(
    space: Space,
    settings: SearchConfig,
    workload: Workload,
    known: Iterable[Outcome],
    place: Path,
    *,
    on_result: Callable[[dict[str, Any]], None],
    processes: int | None,
    total: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Search until nothing is left to try.

    known:     what an earlier run has found
    place:     a folder for Tune's own files, emptied before and after
    on_result: called here with every result of workload.measure
    processes: workers; default: half of the logical CPUs
    total:     configurations still to come, for the bar and the number of workers
    returns:   what was left out (Search.failures), and the errors of trials that gave up
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
        cluster.require(count, workload.cpus)
        searcher = ray.remote(num_cpus=0)(_Searcher).remote(space, settings, workload, list(known))

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
            verify(result, workload)
            on_result(result)
            bar.update()

        def enter(worker: str) -> None:
            ray.get(searcher.enter.remote(worker))

        found = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_work, workload=workload, searcher=searcher),
                {"cpu": workload.cpus},
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


def verify(result: Mapping[str, Any], workload: Workload) -> None:
    """Check that the configuration that was really used is the one that was asked for.

    Errors: RuntimeError
    """
    asked = workload.identify(result["values"])
    if result["config_hash"] != asked or result["hash"] != asked:
        raise RuntimeError(
            f"a worker used another configuration than {result['values']}: its hash is "
            f"{result['config_hash']}, not {asked}"
        )


class _Searcher:
    """The search in an actor, for the workers to ask."""

    def __init__(
        self, space: Space, settings: SearchConfig, workload: Workload, known: Sequence[Outcome]
    ) -> None:
        self.search = Search(space, settings, workload.budget, workload.identify, known)

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


def _work(space: Mapping[str, Any], workload: Workload, searcher: Any) -> None:
    """The trial: load once, then one configuration after the other."""
    import ray
    import torch
    from ray import tune

    torch.set_num_threads(1)
    worker = space["worker"]
    ray.get(searcher.enter.remote(worker))
    loaded = workload.load()
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
            result = workload.measure(loaded, job)
        except Exception as error:
            # Said before the process is lost to it: the search must not try this one again.
            ray.get(searcher.fault.remote(worker, f"{type(error).__name__}: {error}"))
            raise
        value = result["value"]
        tune.report(result)
