"""The job server of a cluster: connect to it with our token, and ask about its jobs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import cluster
from pipelines.errors import PipelineError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray start --head`, `ray dashboard cluster.yaml` and a port-forward put the job server."""

_NOISY = (
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
"""Ray's loggers of what this says better, and once."""
_CONNECT_S = 5.0  # a host that drops packets, not only one that refuses
_ANSWER_S = 8.0
_UPLOAD_S = 120.0  # of silence while it takes a package, or starts a job
_STOP_S = 20.0  # Ray asks a process to end, and kills it after three seconds
_POLL_S = 0.5


class AwayError(PipelineError):
    """A job server that has answered before does not now, and may again: AwayError(message)."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a cluster knows of one job.

    submission_id: its name there
    status:        "PENDING", "RUNNING", "SUCCEEDED", "FAILED" or "STOPPED"
    command:       as it was submitted
    started:       seconds since 1970; None before it has begun
    seconds:       how long it ran, or runs; None before it has begun
    exit_code:     of its process; None while it runs, or where it never ran
    message:       what the cluster says of its state, for a person
    """

    submission_id: str
    status: str
    command: str
    started: float | None
    seconds: float | None
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


def use_token() -> bool:
    """Have Ray's client send our token, where there is one, which it does not by default.

    To be called before anything of Ray is imported: it reads RAY_AUTH_MODE once, at its import.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
    if has_token:
        os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE") or "token"
    return has_token


def connect(address: str | None = None) -> Any:
    """The job server's client, with our token.

    address: of the server ("http://host:8265"); None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else
             this machine's
    Raises: PipelineError: none answers within seconds, or it refuses our token.
    """
    has_token = use_token()
    # Ray lets its variables override what is passed, so an explicit address is set there.
    given = {"RAY_API_SERVER_ADDRESS": address} if address else {}
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    where = address or named or DEFAULT_ADDRESS
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Ray's client, which by itself waits for ever for a server that is silent."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            limit = _ANSWER_S if method == "GET" else _UPLOAD_S
            return super()._do_request(method, endpoint, timeout=(_CONNECT_S, limit), **options)

    try:
        with cluster.environment(given):
            return Client(where)
    except AuthenticationError as error:
        ours = "refuses the token that is set here" if has_token else "wants a token, none is here"
        raise PipelineError(
            f"The cluster at {where} {ours}. Copy its ~/.ray/auth_token to this machine's, or set "
            "RAY_AUTH_TOKEN to its content."
        ) from error
    except (ConnectionError, OSError, RuntimeError) as error:
        raise PipelineError(
            f"No Ray job server answers at {where}. Start one on this machine (`ray start --head`) "
            "or forward the port of a cluster (`ray dashboard cluster.yaml`), then submit again; "
            "--address names another."
        ) from error


def jobs(client: Any) -> list[Job]:
    """The submitted jobs that the cluster remembers, the newest first."""
    with _answering():
        found = client.list_jobs()
    mine = [_job(details) for details in found if details.submission_id]
    return sorted(mine, key=lambda job: job.started or 0.0, reverse=True)


def job(client: Any, submission_id: str) -> Job:
    """One job. Raises: PipelineError: the cluster knows none of this name, or does not answer."""
    with _answering(submission_id):
        return _job(client.get_job_info(submission_id))


def log(client: Any, submission_id: str) -> str:
    """All that a job has printed until now. Raises: as of job."""
    with _answering(submission_id):
        return str(client.get_job_logs(submission_id))


def stop(client: Any, submission_id: str) -> Job:
    """End a job, and wait until it has ended; one that has ended stays as it is.

    Raises: PipelineError: as of job, or it still runs after 20 s.
    """
    with _answering(submission_id):
        client.stop_job(submission_id)
    deadline = time.monotonic() + _STOP_S
    while not (now := job(client, submission_id)).ended:
        if time.monotonic() > deadline:
            raise PipelineError(
                f"{submission_id} was asked to stop {_STOP_S:.0f} s ago and still runs. Ask again: "
                f"`python -m jobs.submit status {submission_id}`."
            )
        time.sleep(_POLL_S)
    return now


def result(text: str) -> dict[str, Any] | None:
    """The last line of a job's log that is a JSON object; None where none is."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                found: dict[str, Any] = json.loads(line)
                return found
    return None


@contextlib.contextmanager
def _answering(submission_id: str = "") -> Iterator[None]:
    """Make one sentence of what Ray's client raises. Raises: PipelineError."""
    try:
        yield
    except RuntimeError as error:
        if "404" in str(error):
            raise PipelineError(
                f"The cluster knows no job {submission_id!r}. `python -m jobs.submit list` shows "
                "those it knows."
            ) from error
        raise AwayError(f"The job server has a fault: {told(error)}") from error
    except OSError as error:
        ask = f": ask with `python -m jobs.submit status {submission_id}`" if submission_id else ""
        raise AwayError(
            f"The job server does not answer any more. Its jobs may go on{ask}."
        ) from error


def told(error: Exception) -> str:
    """What Ray's client says of a refusal, without the server's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join((lines[-1] if "Traceback" in str(error) else " ".join(lines)).split())[:300]


def _job(details: Any) -> Job:
    started = details.start_time and details.start_time / 1000
    ended = details.end_time and details.end_time / 1000
    return Job(
        submission_id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        command=details.entrypoint,
        started=started,
        seconds=(ended or time.time()) - started if started else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )
