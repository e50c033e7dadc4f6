"""Following a submitted job: what is shown, what is kept, what the errors say."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from pipelines import job_server, submit
from pipelines.errors import PipelineError

LOG = 'Loading\n{"step": 1}\nprogress {not json}\n{"AP": 44.5}\nbye\n'


class FakeClient:
    """A job server with one job, whose log connection breaks at the given places."""

    def __init__(self, log: str = LOG, breaks: tuple[int, ...] = (), exit_code: int = 0) -> None:
        self.log, self.exit_code = log, exit_code
        self.breaks = list(breaks)
        self.submitted: dict[str, Any] = {}
        self.away: list[Exception] = []

    def submit_job(self, **job: Any) -> str:
        self.submitted = job
        return str(job["submission_id"])

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        stop = self.breaks.pop(0) if self.breaks else len(self.log)
        for start in range(0, stop, 7):
            yield self.log[start : min(start + 7, stop)]
        if stop < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_logs(self, submission_id: str) -> str:
        return self.log

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        if self.away:
            raise self.away.pop(0)
        status = JobStatus.FAILED if self.exit_code else JobStatus.SUCCEEDED
        return SimpleNamespace(
            submission_id=submission_id,
            status=JobStatus.RUNNING if self.breaks else status,
            entrypoint="true",
            start_time=1000,
            end_time=3000,
            driver_exit_code=self.exit_code,
            message="ended",
        )


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """submit() of a fake job: the submission and all of its log that was shown."""
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(submit, "new_id", lambda command: "idol-train-1")

    def run(client: FakeClient, **options: Any) -> tuple[submit.SubmittedJob, str]:
        monkeypatch.setattr(job_server, "connect", lambda address: client)
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
    assert done == submit.SubmittedJob("idol-train-1", "SUCCEEDED", 0, "ended", {"AP": 44.5})
    assert shown == LOG


def test_a_last_line_without_a_newline_still_counts(follow: Any) -> None:
    done, _ = follow(FakeClient(log='{"step": 1}\n{"AP": 1.0}'))
    assert done.result == {"AP": 1.0}


def test_a_job_without_json_has_no_result(follow: Any) -> None:
    done, _ = follow(FakeClient(log="{broken\n[1, 2]\n"))
    assert done.result is None


@settings(max_examples=25)
@given(breaks=st.lists(st.integers(0, len(LOG) - 1), max_size=4).map(tuple))
def test_a_broken_log_connection_repeats_and_loses_nothing(breaks: tuple[int, ...]) -> None:
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submit, "_POLL_SECONDS", 0.0)
        patch.setattr(job_server, "connect", lambda address: FakeClient(breaks=breaks))
        done = submit.submit(("true",), Path(__file__).parent / "stream", on_log=shown.append)
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
    assert (done.submission_id, done.status, shown) == ("idol-train-1", "PENDING", "")


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


def test_a_missing_folder_and_an_empty_command_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="not a folder"):
        submit.submit(("true",), tmp_path / "absent")
    with pytest.raises(ValueError, match="no command"):
        submit.submit((), tmp_path)


def test_a_server_that_is_away_for_a_while_is_asked_again(follow: Any) -> None:
    client = FakeClient()
    client.away = [ConnectionError("refused"), RuntimeError("status code 503: busy")]
    done, shown = follow(client)
    assert (done.status, shown) == ("SUCCEEDED", LOG)


def test_a_server_that_stays_away_is_told_with_the_jobs_name(
    follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_SILENCE_S", -1.0)
    client = FakeClient()
    client.away = [ConnectionError("refused")] * 9
    with pytest.raises(PipelineError, match=r"may go on: ask with .* status idol-train-1"):
        follow(client)


def test_the_log_of_a_node_that_died_is_what_was_shown_of_it(
    follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_LOG_S", -1.0)

    class Dead(FakeClient):
        def get_job_logs(self, submission_id: str) -> str:
            raise RuntimeError("status code 500: Cannot connect to host")

    done, shown = follow(Dead(exit_code=1))
    assert (done.status, done.exit_code) == ("FAILED", 1)
    assert "The end of the log cannot be had" in shown


def test_ctrl_c_says_that_the_job_goes_on_and_how_to_come_back(follow: Any) -> None:
    client = FakeClient(breaks=(3, 3))

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        submit.follow(client, "idol-train-1", interrupt)
    (note,) = stopped.value.__notes__
    assert "idol-train-1 goes on" in note
    assert "logs idol-train-1 --follow" in note
    assert "stop idol-train-1" in note


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("python", "-m", "jobs.train", "--out", "x"), "train"),
        (("idol", "evaluate"), "evaluate"),
        (("/usr/bin/env", "X=1"), "env"),
        (("python", "-m", "benchmarks.chaos"), "benchmarks-chaos"),
    ],
)
def test_a_submission_is_named_after_its_command_and_its_time(
    command: tuple[str, ...], name: str
) -> None:
    assert re.fullmatch(rf"idol-{name}-\d{{8}}-\d{{6}}-[0-9a-f]{{4}}", submit.new_id(command))


def test_a_head_that_has_no_agent_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it took although its answer was lost is not submitted twice."""
    answers = ["500: No available agent to submit job", "500: Job with id already exists", ""]
    asked = []

    class Client:
        def submit_job(self, **what: object) -> str:
            asked.append(what)
            if answer := answers.pop(0):
                raise RuntimeError(answer)
            return "idol-1"

    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    submit._submit(Client(), "python -c 1", {}, "idol-1")
    first = {"entrypoint": "python -c 1", "runtime_env": {}, "submission_id": "idol-1"}
    assert asked == [first] * 2
