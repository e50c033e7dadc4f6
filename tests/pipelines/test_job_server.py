"""Who does not get in is told why in one sentence, within seconds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from pipelines import job_server
from pipelines.errors import PipelineError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HTTPServer]:
    """A job server that answers everything with its `status`; this process has no token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(server.status)  # type: ignore[attr-defined]
            self.end_headers()
            self.wfile.write(b"Unauthorized")

        def log_message(self, *_: Any) -> None: ...

    # Ray keeps for the life of the process which way of authentication it has.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        (None, 401, "wants a token, none is here"),
        ("wrong", 403, "refuses the token that is set here"),
    ],
)
def test_without_the_right_token_the_message_says_where_to_get_it(
    server: Any, monkeypatch: pytest.MonkeyPatch, token: str | None, status: int, message: str
) -> None:
    server.status = status
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(PipelineError, match=rf"{message}. Copy its ~/\.ray/auth_token") as caught:
        job_server.connect(address)
    assert "\n" not in str(caught.value)


def test_a_head_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "_ANSWER_S", 0.2)
    with socket.socket() as silent:  # takes connections, and never says anything
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(PipelineError, match="No Ray job server answers at"):
            job_server.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


def details(name: str, status: JobStatus, started: int) -> SimpleNamespace:
    return SimpleNamespace(
        submission_id=name,
        status=status,
        entrypoint="python -m jobs.train",
        start_time=started,
        end_time=started + 90_000 if status.is_terminal() else None,
        driver_exit_code=3 if status.is_terminal() else None,
        message=None,
    )


class Client:
    """A server with two jobs, the second of which needs two questions to stop."""

    states = (JobStatus.RUNNING, JobStatus.STOPPED)

    def __init__(self) -> None:
        self.left = list(self.states)

    def list_jobs(self) -> list[SimpleNamespace]:
        driver = details("", JobStatus.RUNNING, 3)
        old = details("idol-a", JobStatus.FAILED, 1_000_000)
        return [old, driver, details("idol-b", JobStatus.RUNNING, 2_000_000)]

    def stop_job(self, name: str) -> None: ...

    def get_job_info(self, name: str) -> SimpleNamespace:
        if name != "idol-b":
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return details(name, self.left.pop(0) if self.left else self.states[0], 1000)


def test_submitted_jobs_are_listed_the_newest_first() -> None:
    newest, oldest = job_server.jobs(Client())
    assert (newest.submission_id, newest.status, newest.ended) == ("idol-b", "RUNNING", False)
    assert (oldest.seconds, oldest.exit_code, oldest.ended) == (90.0, 3, True)


def test_stopping_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "_POLL_S", 0.0)
    assert job_server.stop(Client(), "idol-b").status == "STOPPED"


def test_a_job_that_does_not_stop_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "_STOP_S", -1.0)
    with pytest.raises(PipelineError, match="still runs"):
        job_server.stop(Client(), "idol-b")


def test_an_unknown_job_is_told_as_one() -> None:
    with pytest.raises(PipelineError, match=r"knows no job 'idol-x'.*list"):
        job_server.job(Client(), "idol-x")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ('{"a": 1}\nbye\n{"b": 2}\n{broken', {"b": 2}),
        ('x\n{"a": [1]}', {"a": [1]}),
        ("[1]\n{\n", None),
    ],
)
def test_the_result_is_the_last_whole_object(log: str, expected: dict[str, Any] | None) -> None:
    assert job_server.result(log) == expected


def test_a_servers_traceback_becomes_its_last_line() -> None:
    error = RuntimeError(
        "status code 500: Traceback (most recent call last):\n  x\nOSError: full\n"
    )
    assert job_server.told(error) == "OSError: full"
