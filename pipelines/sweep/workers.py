"""A search spread over Ray Tune: a few long Tune trials, each of which tries configurations."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from idol.config import Config, TrackerConfig, to_dict
from pipelines import cluster, probe
from pipelines.storage import manifest
from pipelines.storage.paths import AnyPath, RemotePath, write_whole
from pipelines.storage.sweep_report import Configuration, Failure, HeldOut, Trial
from pipelines.sweep.search import Search, SearchConfig
from pipelines.sweep.space import Space

_POLL_S = 0.1  # pause of a worker for which there is no configuration at present
_RESTARTS = 20  # of one Tune trial: one for each process that died or configuration that failed


class Ledger:
    """Finished trials, a line of JSON each, only appended to: a killed sweep goes on from them.

    Object storage cannot append: there each line is an object of its own beside `path`.
    """

    def __init__(self, path: AnyPath, input_hash: str) -> None:
        """input_hash: names what the sweep reads; lines about another input are ignored."""
        self.path = path
        self._input_hash = input_hash

    def append(self, trial: Trial) -> None:
        """Add a finished trial; it is on the disk when this returns."""
        line: dict[str, Any] = {"input": self._input_hash, **asdict(trial)}
        line["checksum"] = manifest.hash_value(line)
        if isinstance(self.path, RemotePath):
            place = f"{len(self._objects()):06d}-{trial.hash[:8]}"
            name = f"{self.path.stem}-{place}{self.path.suffix}"
            write_whole(self.path.parent / name, json.dumps(line, sort_keys=True).encode())
            return
        try:
            with self.path.open("a+b") as file:
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                # After a line that a kill has cut short, the next trial starts on a new line.
                start = b"\n" if end and file.read(1) != b"\n" else b""
                file.write(start + json.dumps(line, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # of a full disk it does not name the file
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def read(self) -> list[Trial]:
        """The trials of this input as they were added; those of damaged lines are tried again."""
        trials: list[Trial] = []
        for text in self._lines():
            try:
                line = json.loads(text)
                stated = line.pop("checksum")
            except (ValueError, KeyError, AttributeError, TypeError):
                continue  # cut short by a kill
            if stated == manifest.hash_value(line) and line["input"] == self._input_hash:
                trials.append(Trial.from_dict(line))
        return trials

    def _objects(self) -> list[AnyPath]:
        return sorted(self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}"))

    def _lines(self) -> list[bytes]:
        if isinstance(self.path, RemotePath):
            return [file.read_bytes() for file in self._objects()]
        return self.path.read_bytes().splitlines() if self.path.exists() else []

    def furthest(self) -> list[Trial]:
        """The trial with the largest budget of each configuration, in the order of the search."""
        found: dict[str, Trial] = {}
        for trial in sorted(self.read(), key=lambda trial: -trial.budget):
            found.setdefault(trial.hash, trial)
        return sorted(found.values(), key=lambda trial: trial.number)


class Workload(Protocol):
    """How configurations are tried; sent to every worker.

    budget:   videos of the data set, or steps of a whole training
    unit:     of budgets: videos or steps
    cpus:     that one worker holds
    reads:    files and folders that workers read
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
    @property
    def reads(self) -> Sequence[AnyPath]: ...
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

    ledger:    gets every finished trial
    processes: workers; default: half of the logical CPUs
    returns:   what was left out, and the errors of workers that gave up; none: all was tried
    """
    # Without these, Tune writes every result as CSV, JSON and TensorBoard events, and prints tables
    # on stdout.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # With a handler of its own for Ctrl-C, Tune ends as if nothing were left to try.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    known = ledger.read()
    left = max(1, settings.planned(space) - len({trial.hash for trial in known}))
    with (
        cluster.session(),
        cluster.progress(left, "sweep", "configurations") as bar,
        # Of Tune's own files none is needed again: the ledger is what a sweep goes on from.
        tempfile.TemporaryDirectory(prefix="idol-tune-", ignore_cleanup_errors=True) as unused,
    ):
        import ray
        from ray import tune

        count = max(1, min(processes or cluster.cpus() // 2, left))
        cluster.require(count, workload.cpus, instead="fewer --processes")
        probe.check(ledger.path.parent, workload.reads)
        searcher = ray.remote(num_cpus=0)(Search).remote(
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
                storage_path=unused,
                callbacks=[_listener(finished, lambda w: ray.get(searcher.enter.remote(w)))],
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                verbose=0,
            ),
        ).fit()
        failures = ray.get(searcher.failures.remote())
        errors = [str(error) for error in found.errors]
        if not ray.get(searcher.exchange.remote("driver", None))[1]:
            errors.append("the workers ended before the search")
    return failures, errors


def hash_of(config: TrackerConfig | Config) -> str:
    """Names a configuration by every field of it."""
    return manifest.hash_value(to_dict(config))


def verify(trial: Trial, workload: Workload) -> None:
    """Raise RuntimeError where the configuration really used is not the one asked for."""
    asked = workload.identify(trial.values)
    if trial.hash != asked:
        raise RuntimeError(
            f"a worker used another configuration than {trial.values}: its hash is {trial.hash}, "
            f"not {asked}"
        )


def _listener(finished: Callable[[Trial], None], enter: Callable[[str], None]) -> Any:
    """A callback of Tune: `finished` gets every trial, `enter` a worker whose process died."""
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
