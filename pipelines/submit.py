"""Runs a job on a cluster: sends the code, follows the log, returns the result."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import os
import re
import secrets
import shlex
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipelines import cluster, job_server, package
from pipelines.errors import PipelineError

_Answer = TypeVar("_Answer")

_POLL_SECONDS = 0.5
_AGENT_WAIT_S = 60.0
_LOG_S = 10.0
_SILENCE_S = 60.0
"""How long a job server may be away before the job is left to itself: a head that restarts, a
network that is cut."""


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
    on_start: Callable[[str], None] = lambda text: None,
) -> SubmittedJob:
    """Run a command on a cluster, from a copy of this folder, and wait for its end.

    working_dir: the folder that is sent; what .gitignore and .rayignore name stays behind
    address:     the job server ("http://host:8265"); None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS,
                 else this machine's
    wait:        False: return as soon as the cluster has the job
    on_log:      called with each piece of the job's log as it appears
    on_start:    called with what is sent, before it is, and with the job's name, after
    Raises:
        PipelineError: no cluster answers, it refuses our token, or the package is too large.
        ValueError: there is no command.
        KeyboardInterrupt: with a note on how to come back to the job, which goes on.
    """
    if not command:
        raise ValueError(
            "There is no command to submit. Give one: ('python', '-m', 'jobs.evaluate')."
        )
    job_server.use_token()  # before the packer imports Ray
    code = package.check(working_dir)
    client = job_server.connect(address)
    on_start(f"Sending {working_dir}: {code}.")
    variables = {cluster.SUBMITTED_FROM: os.getcwd(), **(environment or {})}
    runtime_env = {"working_dir": str(working_dir), "env_vars": variables}
    submission_id = new_id(command)
    try:
        _submit(client, shlex.join(command), runtime_env, submission_id)
    except RuntimeError as error:
        raise PipelineError(
            f"The cluster did not take the job: {job_server.told(error)}"
        ) from error
    except OSError as error:
        raise PipelineError(
            f"The job server stopped answering while it took {submission_id}. Ask whether it has "
            f"it: `python -m jobs.submit status {submission_id}`."
        ) from error
    on_start(f"{submission_id} is on the cluster.")
    if not wait:
        return SubmittedJob(submission_id, "PENDING", 0, "", None)
    return follow(client, submission_id, on_log)


def new_id(command: Sequence[str]) -> str:
    """A name that says what runs since when (UTC): idol-train-20261129-213005-ab12."""
    after = [word for before, word in itertools.pairwise(command) if before == "-m"]
    program = Path(command[0]).name
    if after:
        what = after[0].removeprefix("jobs.")
    else:
        what = command[1] if program == "idol" and len(command) > 1 else program
    name = re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")[:30] or "job"
    now = datetime.datetime.now(datetime.UTC)
    return f"idol-{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def follow(
    client: Any, submission_id: str, on_log: Callable[[str], None] = lambda text: None
) -> SubmittedJob:
    """Show a job's log from its beginning to the job's end. Raises: as of submit."""
    try:
        job, log = asyncio.run(_follow(client, submission_id, on_log))
    except KeyboardInterrupt as error:
        error.add_note(
            f"{submission_id} goes on: come back to it with `python -m jobs.submit logs "
            f"{submission_id} --follow`, or end it with `python -m jobs.submit stop "
            f"{submission_id}`."
        )
        raise
    code = 0 if job.status == "SUCCEEDED" else (job.exit_code or 1)
    return SubmittedJob(submission_id, job.status, code, job.message, job_server.result(log))


def _submit(client: Any, entrypoint: str, runtime_env: dict[str, Any], submission_id: str) -> None:
    """Hand the job over. A head that has just started takes a while to have an agent for jobs."""
    deadline = time.monotonic() + _AGENT_WAIT_S
    asked = False
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint, runtime_env=runtime_env, submission_id=submission_id
            )
            return
        except RuntimeError as error:
            if asked and "already exists" in str(error):
                return  # it was taken at the first try, whose answer was lost
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            asked = True
            time.sleep(1.0)


async def _follow(
    client: Any, submission_id: str, on_log: Callable[[str], None]
) -> tuple[job_server.Job, str]:
    """The job and its log, once it has ended; on_log gets every piece of the log once.

    Raises: PipelineError: the server has been silent too long, or has lost the job.
    """
    pieces: list[str] = []
    shown = 0

    def show(text: str, at: int) -> None:
        nonlocal shown
        if at + len(text) > shown:
            pieces.append(text[max(shown - at, 0) :])
            shown = at + len(text)
            on_log(pieces[-1])

    reading = asyncio.create_task(_read(client, submission_id, show))
    try:
        # The server ends a job's stream of lines seconds after the job, so its state is asked for.
        while not (job := await _asked(job_server.job, client, submission_id, _SILENCE_S)).ended:
            if reading.done():
                # It broke: a new stream sends all from the beginning.
                reading = asyncio.create_task(_read(client, submission_id, show))
            await asyncio.sleep(_POLL_SECONDS)
        try:
            show(await _asked(job_server.log, client, submission_id, _LOG_S), 0)
        except job_server.AwayError as error:  # the node that has the log may be what has died
            on_log(f"\n(The end of the log cannot be had: {error})\n")
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    return job, "".join(pieces)


async def _read(client: Any, submission_id: str, show: Callable[[str, int], None]) -> None:
    """Show the log from its beginning, piece by piece, until the stream ends or breaks."""
    import aiohttp

    read = 0
    pieces: AsyncGenerator[str, None] = client.tail_job_logs(submission_id)
    with contextlib.suppress(RuntimeError, aiohttp.ClientError, OSError):
        async for text in pieces:
            show(text, read)
            read += len(text)


async def _asked(
    question: Callable[[Any, str], _Answer],
    client: Any,
    submission_id: str,
    limit: float,
) -> _Answer:
    """What a server says that may be away for a while. Raises: AwayError: for so many seconds."""
    deadline = time.monotonic() + limit
    while True:
        try:
            return await asyncio.to_thread(question, client, submission_id)
        except job_server.AwayError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_SECONDS)
