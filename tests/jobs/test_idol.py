"""The command `idol` names every job, and hands its words on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jobs

ROOT = Path(__file__).resolve().parents[2]
HELPERS = {"command", "places"}


def test_every_job_is_a_verb() -> None:
    files = {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")} - HELPERS
    assert set(jobs.VERBS) == files
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"idol": "jobs:main"}


def test_help_says_in_a_line_what_each_does(capsys: pytest.CaptureFixture[str]) -> None:
    jobs.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert list(told) == list(jobs.VERBS)
    assert all(told.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [(["trakc"], "Did you mean track?"), (["zzz"], "no command 'zzz'"), ([], "`idol --help`")],
)
def test_another_word_is_an_error_that_names_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        jobs.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_words_after_the_verb_are_those_of_the_job(tmp_path: Path) -> None:
    words = ["-c", "import jobs; jobs.main()", "check", str(tmp_path / "absent.json")]
    command = [sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "absent.json does not exist" in done.stderr


def test_help_into_a_pipe_that_is_closed_ends_quietly() -> None:
    command = f"{sys.executable} -m jobs.check --help | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""
