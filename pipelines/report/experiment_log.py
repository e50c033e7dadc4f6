"""Parameters, metrics, curves and files of a run, in MLflow: the only module that knows it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError
from pipelines.storage import paths
from pipelines.storage.paths import AnyPath, RemotePath

EXPERIMENT = "idol"
ARTIFACT_ROOT = "MLFLOW_DEFAULT_ARTIFACT_ROOT"
"""MLflow's variable for where artifacts go, such as s3://bucket/mlruns; of our own file too."""
_ABOUT = "idol.about"  # a tag
_METRICS_PER_CALL = 500  # MLflow takes 1000 a call; one call costs about as much as one metric
_PARAMS_PER_CALL = 100  # MLflow's limit
_PARAM_LENGTH = 6000  # MLflow's limit
_NAME_LENGTH = 250  # MLflow's limit
_RETRIES = 3  # of MLflow's 7, which take minutes where no server answers

_log = logging.getLogger(__name__)


@dataclass
class Log:
    """An open MLflow run, kept at `uri`. Only the driver holds one: SQLite wants one writer.

    What cannot be logged is told once on stderr, and then nothing more is logged: the work that it
    is about goes on.
    """

    uri: str
    run_id: str
    experiment_id: str
    client: Any
    broken: bool = False

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names (tracker.tau)."""
        from mlflow.entities import Param

        flat = [Param(k, str(v)[:_PARAM_LENGTH]) for k, v in flatten(values).items()]
        for start in range(0, len(flat), _PARAMS_PER_CALL):
            self._call("log_batch", self.run_id, params=flat[start : start + _PARAMS_PER_CALL])

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
            self._call("log_batch", self.run_id, metrics=rows[start : start + _METRICS_PER_CALL])

    def steps(self, metric: str) -> set[int]:
        """The steps at which a metric is logged."""
        history = self._call("get_metric_history", self.run_id, metric)
        return {point.step for point in history or ()}

    def artifacts(self, *files: AnyPath) -> None:
        """Copy these files into the run; to object storage without MLflow, which wants boto3."""
        run = self._call("get_run", self.run_id)
        for file in files if run is not None else ():
            with paths.local_file(file) as copy:
                if paths.is_bucket(root := run.info.artifact_uri):
                    self._try(paths.write_whole, paths.at(root) / file.name, copy.read_bytes())
                else:
                    self._call("log_artifact", self.run_id, str(copy))

    def child(self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log a finished run below this one."""
        tags = {"mlflow.parentRunId": self.run_id}
        made = self._call("create_run", self.experiment_id, tags=tags, run_name=name)
        if made is not None:
            run = Log(self.uri, made.info.run_id, self.experiment_id, self.client)
            run.params(params)
            run.metrics(metrics)
            run.end("FINISHED")
            self.broken = run.broken

    def end(self, status: str) -> None:
        """Close the run as FINISHED or FAILED."""
        self._call("set_terminated", self.run_id, status)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """What the client's method returns; None where it fails, or one has failed before."""
        return self._try(getattr(self.client, method), *arguments, **named)

    def _try(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        from mlflow.exceptions import MlflowException

        if self.broken:
            return None
        try:
            return function(*arguments, **named)
        except (MlflowException, OSError) as error:
            self.broken = True
            told = "%s is not logged any further, the work goes on. The experiment log says: %s"
            _log.warning(told, self.uri, _first_line(error))
            return None


@contextlib.contextmanager
def run(
    out: AnyPath,
    name: str,
    config: Mapping[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    about: str = "",
    go_on: bool = False,
) -> Iterator[Log]:
    """Open an MLflow run before the work; it ends FINISHED, or FAILED where the block raises.

    out:    its SQLite file and artifacts are made here, unless MLFLOW_TRACKING_URI says otherwise;
            artifacts of a new file go to MLFLOW_DEFAULT_ARTIFACT_ROOT where that is set
    config: logged as parameters (config.to_dict of a configuration)
    tags:   of the run
    about:  what tells this run from others of its name, kept as a tag
    go_on:  open the newest run again that is about the same and did not finish, if there is one
    Raises: PipelineError: the log cannot be opened.
    """
    client, uri, experiment = _open(out)
    with _opening(uri):
        found = _unfinished(client, experiment, about) if go_on else None
        if found is None:
            tagged = {**(tags or {}), _ABOUT: about} if about else tags
            found = client.create_run(experiment, run_name=name, tags=tagged)
        else:
            client.update_run(found.info.run_id, status="RUNNING")
    log = Log(uri, found.info.run_id, experiment, client)
    try:
        if not found.data.params:
            log.params(config)
        yield log
    except BaseException:
        log.end("FAILED")
        raise
    log.end("FINISHED")


def _unfinished(client: Any, experiment: str, about: str) -> Any:
    found = client.search_runs(
        [experiment],
        filter_string=f"tags.`{_ABOUT}` = '{about}' and attributes.status != 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return next(iter(found), None)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names: {"tracker": {"tau": 1}} -> {"tracker.tau": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[_name(f"{prefix}{key}")] = value
    return flat


def runs(out: AnyPath) -> Sequence[Any]:
    """All runs logged under out, newest first, as MLflow's own objects."""
    client, _, experiment = _open(out)
    return list(client.search_runs([experiment]))


def _name(key: str) -> str:
    """A name that MLflow accepts, another one for every key: categories may be called anything."""
    parts = re.sub(r"[^\w.\- /]", "_", key).split("/")
    name = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if name == key and len(name) <= _NAME_LENGTH:
        return name
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{name[: _NAME_LENGTH - 9]}-{digest}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextlib.contextmanager
def _opening(uri: str) -> Iterator[None]:
    """What fails in the block is a PipelineError, and a server that is not there soon fails."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES

    ours = not RETRIES.is_set()
    if ours:
        RETRIES.set(_RETRIES)
    try:
        yield
    except Exception as error:  # of MLflow, its SQL library, its migrations, or the disk
        raise PipelineError(
            f"the experiment log {uri} cannot be opened ({_first_line(error)}). Mend it, or choose "
            "another place: --log-to FOLDER, or the variable MLFLOW_TRACKING_URI."
        ) from error
    finally:
        if ours:
            RETRIES.unset()


def _open(out: AnyPath) -> tuple[Any, str, str]:
    """The client, its address, and the id of our experiment, made where it is missing.

    Done by the driver before anything else writes: many processes on a fresh SQLite file break
    MLflow's migration of it.

    Raises: PipelineError: the log cannot be opened, or the experiment was deleted.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its migrations tell of themselves, line by line, at level INFO.
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    if isinstance(out, RemotePath) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise PipelineError(
            f"the experiment log is a database and cannot lie in {out}. Give it another place: "
            "--log-to FOLDER, or the variable MLFLOW_TRACKING_URI."
        )
    out.mkdir(parents=True, exist_ok=True)
    # MLflow 3 refuses plain folders.
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.resolve() / 'mlflow.db'}"
    # A server keeps artifacts where it was told to; those of our own file go beside it.
    beside = uri.startswith("sqlite:") and isinstance(out, Path)
    asked = os.environ.get(ARTIFACT_ROOT, "").rstrip("/") if beside else ""
    place = asked or (Path(str(out), "mlruns").resolve().as_uri() if beside else None)
    with _opening(uri):
        client, found = _experiment(uri, place)
    if asked and found.artifact_location.rstrip("/") != asked:
        there = "%s keeps the artifacts of its runs in %s, as when it was made, and not in %s (%s)"
        _log.warning(there, uri, found.artifact_location, asked, ARTIFACT_ROOT)
    if found.lifecycle_stage != "active":
        raise PipelineError(
            f"the experiment {EXPERIMENT!r} of {uri} was deleted. Restore it with `mlflow "
            f"experiments restore --experiment-id {found.experiment_id}`, or choose another place: "
            "--log-to FOLDER, or the variable MLFLOW_TRACKING_URI."
        )
    return client, uri, str(found.experiment_id)


def _experiment(uri: str, place: str | None) -> tuple[Any, Any]:
    """The client, and MLflow's object of our experiment."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            client.create_experiment(EXPERIMENT, artifact_location=place)
        except MlflowException:
            # Another driver may have made it between our look and our try, on a shared server.
            if client.get_experiment_by_name(EXPERIMENT) is None:
                raise
        found = client.get_experiment_by_name(EXPERIMENT)
    return client, found
