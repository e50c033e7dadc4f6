"""Following a submitted job: what is shown, what is kept, what the errors say."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from pipelines import submit
from pipelines.errors import PipelineError

LOG = 'Loading\n{"step": 1}\nprogress {not json}\n{"AP": 44.5}\nbye\n'


class FakeClient:
    """A job server with one job, whose log connection breaks at the given places."""

    def __init__(self, log: str = LOG, breaks: tuple[int, ...] = (), exit_code: int = 0) -> None:
        self.log, self.exit_code = log, exit_code
        self.breaks = list(breaks)
        self.submitted: dict[str, Any] = {}

    def submit_job(self, **job: Any) -> str:
        self.submitted = job
        return "raysubmit_1"

    def get_job_status(self, submission_id: str) -> JobStatus:
        if self.breaks:
            return JobStatus.RUNNING
        return JobStatus.FAILED if self.exit_code else JobStatus.SUCCEEDED

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        stop = self.breaks.pop(0) if self.breaks else len(self.log)
        for start in range(0, stop, 7):
            yield self.log[start : min(start + 7, stop)]
        if stop < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        status = JobStatus.FAILED if self.exit_code else JobStatus.SUCCEEDED
        return SimpleNamespace(status=status, driver_exit_code=self.exit_code, message="ended")


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """submit() of a fake job: the submission and all of its log that was shown."""
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.0)

    def run(client: FakeClient, **options: Any) -> tuple[submit.SubmittedJob, str]:
        monkeypatch.setattr(submit, "_connect", lambda address: client)
        shown: list[str] = []
        done = submit.submit(
            ("python", "-m", "jobs.train", "--set", "a b"),
            tmp_path,
            on_log=shown.append,
            **options,
        )
        return done, "".join(shown)

    return run


def test_the_result_is_the_last_line_that_is_a_json_object(follow: Any) -> None:
    done, shown = follow(FakeClient())
    assert done == submit.SubmittedJob("raysubmit_1", "SUCCEEDED", 0, "ended", {"AP": 44.5})
    assert shown == LOG


def test_a_last_line_without_a_newline_still_counts(follow: Any) -> None:
    done, _ = follow(FakeClient(log='{"step": 1}\n{"AP": 1.0}'))
    assert done.result == {"AP": 1.0}


def test_a_job_without_json_has_no_result(follow: Any) -> None:
    done, _ = follow(FakeClient(log="{broken\n[1, 2]\n"))
    assert done.result is None


@given(breaks=st.lists(st.integers(0, len(LOG) - 1), max_size=4).map(tuple))
def test_a_broken_log_connection_repeats_and_loses_nothing(breaks: tuple[int, ...]) -> None:
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submit, "_POLL_SECONDS", 0.0)
        patch.setattr(submit, "_connect", lambda address: FakeClient(breaks=breaks))
        done = submit.submit(("true",), Path(__file__).parent, on_log=shown.append)
    assert "".join(shown) == LOG
    assert done.result == {"AP": 44.5}


def test_a_failed_job_passes_its_exit_code_on(follow: Any) -> None:
    done, _ = follow(FakeClient(exit_code=3))
    assert (done.status, done.exit_code) == ("FAILED", 3)


def test_arguments_with_spaces_reach_the_job_whole(follow: Any) -> None:
    client = FakeClient()
    follow(client, environment={"A": "1"})
    assert client.submitted["entrypoint"] == "python -m jobs.train --set 'a b'"
    assert client.submitted["runtime_env"]["env_vars"] == {
        "A": "1", "IDOL_SUBMITTED_FROM": os.getcwd()
    }  # fmt: skip


def test_not_waiting_returns_the_name_at_once(follow: Any) -> None:
    done, shown = follow(FakeClient(), wait=False)
    assert (done.submission_id, done.status, shown) == ("raysubmit_1", "PENDING", "")


def test_no_cluster_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"No Ray job server answers at http://127\.0\.0\.1:9"):
        submit.submit(("true",), tmp_path, address="http://127.0.0.1:9")


def test_an_explicit_address_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Ray's own client would let the variable win.
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere.invalid:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere.invalid:2")
    with pytest.raises(PipelineError) as caught:
        submit.submit(("true",), tmp_path, address="http://127.0.0.1:9")
    assert "127.0.0.1:9" in str(caught.value.__cause__)


def test_a_package_that_is_too_large_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Refusing(FakeClient):
        def submit_job(self, **job: Any) -> str:
            raise RuntimeError("Request failed with status code 413: Maximum size exceeded")

    monkeypatch.setattr(submit, "_connect", lambda address: Refusing())
    with pytest.raises(PipelineError, match=r"name data and outputs in \.rayignore"):
        submit.submit(("true",), tmp_path)


def test_a_missing_folder_and_an_empty_command_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="not a folder"):
        submit.submit(("true",), tmp_path / "absent")
    with pytest.raises(ValueError, match="no command"):
        submit.submit((), tmp_path)


def test_a_head_that_has_no_agent_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [RuntimeError("500: No available agent to submit job"), "raysubmit_1"]
    asked = []

    class Client:
        def submit_job(self, **what: object) -> str:
            asked.append(what)
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    assert submit._submit(Client(), "python -c 1", {}) == "raysubmit_1"
    assert asked == [{"entrypoint": "python -c 1", "runtime_env": {}}] * 2
