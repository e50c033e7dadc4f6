"""How a job begins and ends: its last line, its exit status, and what it says when it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.options import command
from pipelines.errors import PipelineError
from tests.foreground import foreground

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a job of these tests takes."""

    number: int = 1
    """Its result."""
    set: command.Repeated = ()
    """Words."""


def run(work: Any, argv: Sequence[str] = (), **others: Any) -> None:
    command.run("nothing", Options, work, list(argv), **others)


def test_what_the_work_returns_is_the_last_line_in_the_order_of_its_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(lambda job: {"number": job.number, "all": job.set}, ["--number", "3", "--set", "b"])
    assert capsys.readouterr().out == '{"all": ["b"], "number": 3}\n'


def test_a_line_that_counts_failures_is_printed_and_the_status_is_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(lambda job: {"failures": 0})
    with pytest.raises(SystemExit) as stopped:
        run(lambda job: {"failures": 2})
    assert stopped.value.code == 1
    assert capsys.readouterr().out == '{"failures": 0}\n{"failures": 2}\n'


def test_work_that_has_printed_its_line_returns_none(capsys: pytest.CaptureFixture[str]) -> None:
    run(lambda job: None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PipelineError("no such folder"), "PipelineError: no such folder"),
        (ValueError("too small"), "ValueError: too small"),
        (FileNotFoundError("a.json is missing"), "FileNotFoundError: a.json is missing"),
        (IndexError("row 9 of 3"), "IndexError: row 9 of 3"),
    ],
)
def test_a_mistake_of_the_caller_ends_the_job_with_its_message_and_notes(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(job: Options) -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(work, also=(IndexError,))
    assert stopped.value.code == message  # Python prints it to stderr, and the status is 1
    error.add_note("Two frames were written.")
    with pytest.raises(SystemExit) as stopped:
        run(work, also=(IndexError,))
    assert stopped.value.code == f"{message} Two frames were written."
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--numbr", "3"], "there is no option --numbr. Did you mean --number? `python"),
        (["--numbr=3"], "there is no option --numbr. Did you mean --number? `python"),
        (["--no_number"], None),  # known, whatever tyro says of it
        (["--qqqq"], "there is no option --qqqq. `python -m jobs.nothing --help` lists all."),
    ],
)
def test_a_mistyped_option_is_named_and_not_another_one(
    words: list[str], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(lambda job: None, words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert (message is None) == (not said[0].startswith("there is no option"))
    if message is not None:
        assert len(said) == 1
        assert said[0].startswith(message)


def test_what_stands_behind_two_dashes_is_no_option_of_this_job() -> None:
    command._check_names("python -m jobs.submit", Options, ["--set", "a", "--", "--other", "1"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("auto", (None, None)),
        ("cpu", (False, None)),
        ("gpu", (True, None)),
        ("cuda", (True, None)),
        ("cuda:1", (True, 1)),
        ("gpu:0", (True, 0)),
    ],
)
def test_a_device_has_the_same_words_in_every_job(
    text: str, found: tuple[bool | None, int | None]
) -> None:
    assert command.device(text) == found


@pytest.mark.parametrize("text", ["", "GPU", "cuda:", "cuda:-1", "cpu:0", "mps", "cuda:12345"])
def test_another_word_is_no_device(text: str) -> None:
    with pytest.raises(ValueError, match="--device must be auto, cpu, gpu, cuda or cuda:N, got"):
        command.device(text)


def test_a_bug_keeps_its_traceback() -> None:
    def work(job: Options) -> None:
        raise KeyError("tau")

    with pytest.raises(KeyError, match="tau"):
        run(work)


def test_ctrl_c_is_status_130_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work(job: Options) -> None:
        error = KeyboardInterrupt()
        error.add_note("Nothing was written.")
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(work)
    assert stopped.value.code == 130
    found = capsys.readouterr()
    assert (found.out, found.err.strip()) == ("", "Interrupted. Nothing was written.")


def test_ctrl_c_ends_a_job_of_several_processes_without_a_traceback(tmp_path: Path) -> None:
    # To the whole group, as a terminal sends it: the processes that draw videos get it too.
    process = subprocess.Popen(
        foreground("-m", "jobs.demo", "--out", str(tmp_path / "out")),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(tmp_path.rglob("*.jpg")) and process.poll() is None:
        time.sleep(0.05)  # pytest-timeout ends it where nothing comes
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Interrupted." in stderr
    assert "Traceback" not in stderr
