"""What Ray Tune runs, and what follows each result.

Imported inside a session, for Ray reads its environment when it is imported.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

import torch
from ray import tune

from pipelines import gauges
from pipelines.report.experiment_log import Log
from pipelines.storage.sweep_report import Configuration, Ledger, Trial
from pipelines.sweep.space import without_section
from pipelines.sweep.workload import Workload

_CHILD_RUNS: Final = 50  # of the best trials, in the experiment log; report.json has all trials
_ROWS: Final = 5  # of the table
_TABLE_S: Final = 5  # between two tables on a terminal
_LOG_S: Final = 60  # in a file


class SweepTrial(tune.Trainable):  # type: ignore[misc]
    """A configuration at one rung after the other. Its process is kept for the next one."""

    def setup(
        self, config: dict[str, Any], workload: Workload, loaded: Any, known: Sequence[Trial]
    ) -> None:
        """Once for each process.

        loaded: of workload.load, in the memory that all processes of a machine share
        known:  of earlier runs: their results are told again, and not computed
        """
        torch.set_num_threads(1)
        self._workload, self._loaded = workload, loaded
        self._known: dict[str, list[Trial]] = {}
        for trial in sorted(known, key=lambda trial: trial.budget):
            self._known.setdefault(trial.hash, []).append(trial)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next configuration: {"section.field": value, "number": n}."""
        values = {key: value for key, value in new_config.items() if "." in key}
        name = self._workload.identify(values)
        of = Configuration(number=int(new_config["number"]), hash=name, values=values)
        known = self._known.get(name, [])
        after = known[-1].budget if known else 0
        self._left: Iterator[Trial] = itertools.chain(
            known, self._workload.measure(self._loaded, of, after)
        )
        return True

    def step(self) -> dict[str, Any]:
        """Try it at the next rung."""
        trial = next(self._left)
        self._budget = trial.budget
        # Pairs: Tune keeps statistics of every number in a dict, 2 KB each, for every trial.
        pairs = {"values": list(trial.values.items()), "metrics": list(trial.metrics.items())}
        return {**asdict(trial), **pairs, "done": trial.budget == self._workload.rungs[-1]}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """How far it is; what was trained so far lies in the folder of the configuration."""
        return {"budget": self._budget}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on after the rung of a checkpoint."""
        after = checkpoint["budget"] if checkpoint else 0
        self._left = itertools.dropwhile(lambda trial: trial.budget <= after, self._left)


class Recorder(tune.Callback):  # type: ignore[misc]
    """Writes every result to the ledger as it comes, and the best to the experiment log.

    Tune's own callback for MLflow makes a run of every trial, which costs more than the trial.
    """

    def __init__(self, workload: Workload, ledger: Ledger, log: Log | None, metric: str) -> None:
        """metric: name of what is maximised"""
        self._workload, self._ledger, self._log, self._metric = workload, ledger, log, metric
        self._trials = {(trial.hash, trial.budget): trial for trial in ledger.read()}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of its callbacks; a connection cannot be copied

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Raises: RuntimeError: the trial used another configuration than was asked for."""
        found = Trial.from_dict(result)
        asked = self._workload.identify(found.values)
        if found.hash != asked:
            raise RuntimeError(
                f"a trial used another configuration than {found.values}: its hash is "
                f"{found.hash}, not {asked}"
            )
        if (found.hash, found.budget) not in self._trials:
            self._trials[found.hash, found.budget] = found
            self._ledger.append(found)
        stopped = sum(one.is_finished() for one in trials)
        failed = sum(one.status == "ERROR" for one in trials)
        gauges.tell("sweep", {"trials": stopped, "queue": len(trials) - stopped, "rejects": failed})

    def log_best(self) -> None:
        """Log a child run for each of the best trials, once all are there."""
        whole = self._workload.rungs[-1]
        full = [trial for trial in self._trials.values() if trial.budget == whole]
        for trial in sorted(full, key=lambda trial: -trial.value)[:_CHILD_RUNS]:
            # Short, for MLflow's page shows it in large letters; the values are parameters there.
            title = f"{self._metric} {100 * trial.value:.1f}, number {trial.number}"
            metrics = {self._metric: trial.value, **trial.metrics}
            if self._log is not None:
                self._log.child(title, without_section(trial.values), metrics)


class Table(tune.ProgressReporter):  # type: ignore[misc]
    """The best so far, on stderr: stdout is for the one line of the job.

    Tune's own tables fail on the base, which has no values, and are as wide as there are fields.
    """

    def __init__(self, metric: str, unit: str, total: int) -> None:
        self._metric, self._unit, self._total = metric, unit, total
        self._pause = _TABLE_S if sys.stderr.isatty() else _LOG_S
        self._next = time.monotonic() + self._pause

    def should_report(self, trials: Any, done: bool = False) -> bool:
        """Every few seconds on a terminal, every minute in a file."""
        return done or time.monotonic() > self._next

    def report(self, trials: Any, done: bool, *sys_info: str) -> None:
        """Print how far the search is, and the best configurations."""
        self._next = time.monotonic() + self._pause
        tried = [trial.last_result for trial in trials if "hash" in trial.last_result]
        stopped = sum(trial.is_finished() for trial in trials)
        lines = [f"{stopped} of {self._total} configurations tried; the best:"]
        for best in sorted(tried, key=lambda found: (-found["budget"], -found["value"]))[:_ROWS]:
            values = without_section(dict(best["values"])) or {"without": "the sweep"}
            text = " ".join(f"{key}={value}" for key, value in values.items())
            told = f"{self._metric} {100 * best['value']:.1f} on {best['budget']} {self._unit}"
            lines.append(f"  {told}, number {best['number']}: {text}")
        sys.stderr.write("\n".join([*lines, ""]))


def name(trial: Any) -> str:
    """What Tune calls a trial: the number of its configuration."""
    return f"{trial.config['number']:04d}"
