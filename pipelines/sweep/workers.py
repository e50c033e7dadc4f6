"""A search spread over Ray Tune: a few long Tune trials, each of which tries configurations."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from idol.config import Config, TrackerConfig, to_dict
from pipelines import cluster
from pipelines.storage import manifest
from pipelines.storage.sweep_report import Configuration, Failure, HeldOut, Trial
from pipelines.sweep.ledger import Ledger
from pipelines.sweep.search import Search, SearchConfig
from pipelines.sweep.space import Space

_POLL_S = 0.1  # pause of a worker for which there is no configuration at present
_RESTARTS = 20  # of one Tune trial: one for each process that died or configuration that failed


class Workload(Protocol):
    """How configurations are tried; sent to every worker.

    budget:   videos of the data set, or steps of a whole training
    unit:     of budgets: videos or steps
    cpus:     that one worker holds
    identify: the hash of the configuration with these values; ValueError where they do not go
              together
    load:     what a worker reads once, before its first configuration
    measure:  try a configuration; the trial has the hash of the configuration really used
    held_out: cross-validation over trials with the whole budget; None: there is none
    """

    @property
    def budget(self) -> int: ...
    @property
    def unit(self) -> str: ...
    @property
    def cpus(self) -> float: ...
    def identify(self, values: Mapping[str, Any]) -> str: ...
    def load(self) -> Any: ...
    def measure(self, loaded: Any, configuration: Configuration, budget: int) -> Trial: ...
    def held_out(self, full: Sequence[Trial]) -> HeldOut | None: ...


def run(
    space: Space,
    settings: SearchConfig,
    workload: Workload,
    ledger: Ledger,
    *,
    processes: int | None = None,
) -> tuple[list[Failure], list[str]]:
    """Go on with a search from its ledger until nothing is left to try.

    ledger:    gets every finished trial; Tune's own files are beside it until the search ends
    processes: workers; default: half of the logical CPUs
    returns:   what was left out, and the errors of workers that gave up
    """
    # Without these, Tune writes every result as CSV, JSON and TensorBoard events, and prints tables
    # on stdout.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    place = ledger.path.parent / "tune"
    shutil.rmtree(place, ignore_errors=True)
    known = ledger.read()
    left = max(1, settings.planned(space) - len({trial.hash for trial in known}))
    with cluster.session(), cluster.progress(left, "sweep", "configurations") as bar:
        import ray
        from ray import tune

        count = max(1, min(processes or cluster.cpus() // 2, left))
        cluster.require(count, workload.cpus)
        searcher = ray.remote(num_cpus=0)(_Searcher).remote(
            space, settings, workload.budget, workload.identify, known
        )

        def finished(trial: Trial) -> None:
            verify(trial, workload)
            ledger.append(trial)
            bar.update()

        work = tune.with_parameters(_work, workload=workload, searcher=searcher)
        found = tune.Tuner(
            tune.with_resources(work, {"cpu": workload.cpus}),
            param_space={"worker": tune.grid_search([f"worker-{i}" for i in range(count)])},
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(place.resolve()),
                callbacks=[_listener(finished, lambda w: ray.get(searcher.enter.remote(w)))],
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                verbose=0,
            ),
        ).fit()
        failures = ray.get(searcher.failures.remote())
    shutil.rmtree(place, ignore_errors=True)
    return failures, [str(error) for error in found.errors]


def hash_of(config: TrackerConfig | Config) -> str:
    """Names a configuration by every field of it."""
    return manifest.hash_value(to_dict(config))


def verify(trial: Trial, workload: Workload) -> None:
    """Check that the configuration that was really used is the one that was asked for.

    Raises: RuntimeError: it is not.
    """
    asked = workload.identify(trial.values)
    if trial.hash != asked:
        raise RuntimeError(
            f"a worker used another configuration than {trial.values}: its hash is {trial.hash}, "
            f"not {asked}"
        )


def _listener(finished: Callable[[Trial], None], enter: Callable[[str], None]) -> Any:
    """A callback of Tune that runs in this process.

    finished: called with every trial
    enter:    called with the name of a worker whose process died
    """
    from ray import tune

    class Listener(tune.Callback):  # type: ignore[misc]
        def __init__(self, finished: Callable[[Trial], None], enter: Callable[[str], None]) -> None:
            # Tune pickles the class, so it must not refer to variables of the function around it.
            self.finished, self.enter = finished, enter

        def __getstate__(self) -> dict[str, Any]:
            return {}  # a progress bar cannot be pickled, and is not needed in the copy

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            self.finished(Trial.from_dict(result))

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.enter(trial.config["worker"])

        on_trial_error = on_trial_recover

    return Listener(finished, enter)


class _Searcher(Search):
    """The search in an actor that the workers ask."""

    def exchange(
        self, worker: str, value: float | None
    ) -> tuple[tuple[Configuration, int] | None, bool]:
        """Take the value of the worker's last configuration.

        returns: the next configuration and its budget, and whether the search is over
        """
        if value is not None:
            self.tell(worker, value)
        asked = self.next(worker)
        return asked, asked is None and self.over


def _work(param_space: Mapping[str, Any], workload: Workload, searcher: Any) -> None:
    """A Tune trial: load once, then try one configuration after the other."""
    import ray
    import torch
    from ray import tune

    torch.set_num_threads(1)
    worker = param_space["worker"]
    ray.get(searcher.enter.remote(worker))
    loaded = workload.load()
    value: float | None = None
    while True:
        asked, over = ray.get(searcher.exchange.remote(worker, value))
        value = None
        if over:
            return
        if asked is None:
            time.sleep(_POLL_S)
            continue
        try:
            trial = workload.measure(loaded, *asked)
        except Exception as error:
            # The search must know before this process ends, or it tries the configuration again.
            ray.get(searcher.fault.remote(worker, f"{type(error).__name__}: {error}"))
            raise
        value = trial.value
        tune.report(asdict(trial))
