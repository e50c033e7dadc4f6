"""Runs a job on a cluster: sends the code, follows the log, returns the result."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import cluster
from pipelines.errors import PipelineError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray start --head`, `ray dashboard cluster.yaml` and a port-forward put the job server."""

_POLL_SECONDS = 1.0
_AGENT_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job on a cluster.

    submission_id: its name there, for `ray job status`, `logs` and `stop`
    status:        "SUCCEEDED", "FAILED" or "STOPPED"; "PENDING" if not waited for
    exit_code:     what its process returned; 0 exactly if it succeeded or was not waited for
    message:       what the cluster says about the end, for a person
    result:        the last line of its log that is a JSON object; None if there is none
    """

    submission_id: str
    status: str
    exit_code: int
    message: str
    result: dict[str, Any] | None


def submit(
    command: Sequence[str],
    working_dir: Path,
    *,
    address: str | None = None,
    environment: Mapping[str, str] | None = None,
    wait: bool = True,
    on_log: Callable[[str], None] = lambda text: None,
) -> SubmittedJob:
    """Run a command on a cluster, from a copy of this folder, and wait for its end.

    working_dir: the folder that is sent; what .gitignore and .rayignore name stays behind
    address:     the job server ("http://host:8265"); None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS,
                 else this machine's
    wait:        False: return as soon as the cluster has the job
    on_log:      called with each piece of the job's log as it appears
    Raises:
        PipelineError: no cluster answers, it refuses our token, or the package is too large.
        ValueError: there is no command.
    """
    if not command:
        raise ValueError(
            "There is no command to submit. Give one: ('python', '-m', 'jobs.evaluate')."
        )
    if not working_dir.is_dir():
        raise PipelineError(f"{working_dir} is not a folder, so its code cannot be sent.")
    client = _connect(address)
    variables = {cluster.SUBMITTED_FROM: os.getcwd(), **(environment or {})}
    runtime_env = {"working_dir": str(working_dir), "env_vars": variables}
    try:
        submission_id = _submit(client, shlex.join(command), runtime_env)
    except RuntimeError as error:
        todo = " The package may have 100 MiB: name data and outputs in .rayignore."
        raise PipelineError(
            f"The cluster did not take the job: {error}{todo if '413' in str(error) else ''}"
        ) from error
    if not wait:
        return SubmittedJob(submission_id, "PENDING", 0, "", None)
    rest = ""
    result: dict[str, Any] | None = None

    def read(text: str) -> None:
        nonlocal rest, result
        on_log(text)
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            result = _json_object(line, result)

    try:
        asyncio.run(_follow(client, submission_id, read))
        info = client.get_job_info(submission_id)
    except OSError as error:
        raise PipelineError(
            f"The job server stopped answering while {submission_id} ran. The job may go on: ask "
            f"with `ray job status {submission_id}`."
        ) from error
    status = str(info.status)
    code = 0 if status == "SUCCEEDED" else (info.driver_exit_code or 1)
    result = _json_object(rest, result)
    return SubmittedJob(submission_id, status, code, info.message or "", result)


def _submit(client: Any, entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Hand the job over. A head that has just started takes a while to have an agent for jobs."""
    deadline = time.monotonic() + _AGENT_WAIT_S
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _connect(address: str | None) -> Any:
    """The job server's client, with our token; PipelineError says what to do where none answers."""
    # Ray's client sends no token by default.
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN") or path.is_file():
        os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE") or "token"
    # Ray lets its variables override what is passed, so an explicit address is set there.
    given = {"RAY_API_SERVER_ADDRESS": address} if address else {}
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    where = address or named or DEFAULT_ADDRESS
    # Imported here: Ray reads RAY_AUTH_MODE once, when it is imported.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        with cluster.environment(given):
            return JobSubmissionClient(where)
    except AuthenticationError as error:
        raise PipelineError(
            f"The cluster at {where} wants another token. Copy its ~/.ray/auth_token here, or set "
            "RAY_AUTH_TOKEN to its content."
        ) from error
    except (ConnectionError, OSError, RuntimeError) as error:
        raise PipelineError(
            f"No Ray job server answers at {where}. Start one on this machine (`ray start --head`) "
            "or forward the port of a cluster (`ray dashboard cluster.yaml`), then submit again; "
            "--address names another."
        ) from error


async def _follow(client: Any, submission_id: str, on_log: Callable[[str], None]) -> None:
    """Call on_log with every piece of the log, once, until the job has ended; reconnects."""
    import aiohttp

    shown = 0
    while True:
        # Asked before reading: if it has ended, the read below is complete.
        ended = client.get_job_status(submission_id).is_terminal()
        read = 0
        pieces: AsyncGenerator[str, None] = client.tail_job_logs(submission_id)
        # The log connection broke (Ray raises RuntimeError): the job itself goes on.
        with contextlib.suppress(RuntimeError, aiohttp.ClientError):
            async for text in pieces:
                # A new connection sends the log from its beginning.
                if read + len(text) > shown:
                    on_log(text[max(shown - read, 0) :])
                read += len(text)
                shown = max(shown, read)
        if ended:
            return
        await asyncio.sleep(_POLL_SECONDS)


def _json_object(line: str, otherwise: dict[str, Any] | None) -> dict[str, Any] | None:
    """The line as a JSON object, where it is one."""
    if line.startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):
            found: dict[str, Any] = json.loads(line)
            return found
    return otherwise
