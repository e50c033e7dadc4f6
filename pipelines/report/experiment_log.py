"""Parameters, metrics, curves and files of a run, in MLflow: the only module that knows it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPERIMENT = "idol"
_METRICS_PER_CALL = 500  # MLflow takes 1000 a call; one call costs about as much as one metric
_PARAMS_PER_CALL = 100  # MLflow's limit
_PARAM_LENGTH = 6000  # MLflow's limit


@dataclass(frozen=True)
class Log:
    """An open MLflow run, kept at `uri`. Only the driver holds one: SQLite wants one writer."""

    uri: str
    run_id: str
    client: Any

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names (tracker.tau)."""
        from mlflow.entities import Param

        flat = [Param(k, str(v)[:_PARAM_LENGTH]) for k, v in flatten(values).items()]
        for start in range(0, len(flat), _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=flat[start : start + _PARAMS_PER_CALL])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers of one step in one call."""
        self.curve([(step, values)])

    def curve(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log the finite of (step, {name: number}) points; MLflow's stores differ on others."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [
            Metric(_name(key), float(value), now, step)
            for step, values in points
            for key, value in values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(rows), _METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=rows[start : start + _METRICS_PER_CALL])

    def artifacts(self, *paths: Path) -> None:
        """Copy these files into the run."""
        for path in paths:
            self.client.log_artifact(self.run_id, str(path))


@contextlib.contextmanager
def run(
    out: Path,
    name: str,
    config: Mapping[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    parent: Log | None = None,
) -> Iterator[Log]:
    """Open an MLflow run; it ends FINISHED, or FAILED where the block raises.

    out:    its SQLite file and artifacts are made here, unless MLFLOW_TRACKING_URI says otherwise
    config: logged as parameters (config.to_dict of a configuration)
    parent: the run that this one is a child of
    """
    client, uri, experiment = _open(out)
    all_tags = {"mlflow.runName": name, **(tags or {})}
    if parent is not None:
        all_tags["mlflow.parentRunId"] = parent.run_id
    run_id = client.create_run(experiment, tags=all_tags, run_name=name).info.run_id
    log = Log(uri, run_id, client)
    try:
        log.params(config)
        yield log
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names: {"tracker": {"tau": 1}} -> {"tracker.tau": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[_name(f"{prefix}{key}")] = value
    return flat


def runs(out: Path) -> Sequence[Any]:
    """All runs logged under out, newest first, as MLflow's own objects."""
    client, _, experiment = _open(out)
    return list(client.search_runs([experiment]))


def _name(key: str) -> str:
    """A name that MLflow accepts: categories may hold any character."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in key)


def _open(out: Path) -> tuple[Any, str, str]:
    """The client, its address, and the id of our experiment, made where it is missing.

    Done by the driver before anything else writes: many processes on a fresh SQLite file break
    MLflow's migration of it.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its migrations tell of themselves, line by line, at level INFO.
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    out.mkdir(parents=True, exist_ok=True)
    # MLflow 3 refuses plain folders.
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.resolve() / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return client, uri, str(found.experiment_id)
    # A server keeps artifacts where it was told to; beside our own file they go beside it.
    place = (out / "mlruns").resolve().as_uri() if uri.startswith("sqlite:") else None
    try:
        return client, uri, str(client.create_experiment(EXPERIMENT, artifact_location=place))
    except MlflowException:
        # Another driver made it between our look and our try, on a shared server.
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        return client, uri, str(found.experiment_id)
