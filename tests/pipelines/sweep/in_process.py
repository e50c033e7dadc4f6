"""A sweep without Ray: the same search, scheduler and trials, one after the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipelines.storage.sweep_report import Failure, Ledger, Trial, furthest
from pipelines.sweep import proposals, trainable, tuning


def trial_of(config: dict[str, Any], workload: Any, loaded: Any, known: Any) -> Any:
    """A trial of Tune, outside an actor."""
    trial = trainable.SweepTrial.__new__(trainable.SweepTrial)
    trial.setup(config, workload=workload, loaded=loaded, known=known)
    return trial


class Runs:
    """Takes the place of tuning.run; the n-th call is killed after stop[n] computed results.

    done: results that were computed, over all runs
    """

    def __init__(self, *stop: int | None) -> None:
        self.stop = list(stop)
        self.done: list[Trial] = []

    def __call__(
        self, space: Any, settings: Any, workload: Any, ledger: Ledger, **how: Any
    ) -> tuple[list[Trial], list[Failure]]:
        known, limit = ledger.read(), self.stop.pop(0)
        there = {(trial.hash, trial.budget) for trial in known}
        search = proposals.Proposals(space, settings, workload, furthest(known))
        scheduler = tuning._scheduler(settings, workload.rungs[-1])
        recorder = trainable.Recorder(workload, ledger, None, settings.objective)
        loaded, found, computed = workload.load(), [], 0
        while isinstance(config := search.suggest(str(len(found))), dict):
            stub = SimpleNamespace(trial_id=str(len(found)))
            scheduler.on_trial_add(None, stub)
            trial, decision, rung = trial_of(config, workload, loaded, known), "", 0
            result: dict[str, Any] = {}
            while not result.get("done") and decision != "STOP":
                if computed == limit:
                    raise KeyboardInterrupt
                rung += 1
                result = {**trial.step(), "training_iteration": rung}  # as Tune adds it
                if (result["hash"], result["budget"]) not in there:
                    self.done.append(Trial.from_dict(result))
                    computed += 1
                decision = scheduler.on_trial_result(None, stub, result)
                if decision != "STOP":
                    search.on_trial_result(stub.trial_id, result)
                recorder.on_trial_result(0, (), None, result)
            scheduler.on_trial_complete(None, stub, result)
            search.on_trial_complete(stub.trial_id, result)
            found.append(SimpleNamespace(metrics=result, error=None, config=config))
        return tuning.results(found, known, search.refused)  # type: ignore[arg-type]
