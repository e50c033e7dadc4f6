"""The command `idol` names every job, and hands its words on."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jobs

ROOT = Path(__file__).resolve().parents[2]


def test_every_job_is_a_verb() -> None:
    files = {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")}
    assert set(jobs.VERBS) == files
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"idol": "jobs:main"}


def test_help_says_in_a_line_what_each_does(capsys: pytest.CaptureFixture[str]) -> None:
    jobs.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert list(told) == [*jobs.VERBS, *jobs.TOOLS]
    assert all(told.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trakc"], "Did you mean track?"),
        (["modles"], "Did you mean models?"),
        (["zzz"], "no command 'zzz'"),
        ([], "`idol --help`"),
        (["config", "trackr"], "no section 'trackr'. Did you mean tracker?"),
        (["config", "tracker", "--preset", "ovis"], "no preset is called 'ovis'"),
        (["completion", "tcsh"], "usage: idol completion bash|zsh|fish"),
    ],
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


def test_models_are_listed_with_what_a_name_costs(capsys: pytest.CaptureFixture[str]) -> None:
    jobs.main(["models"])
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("ytvis19-r50 ")]
    assert line.split()[:5] == ["ytvis19-r50", "ytvis19_r50", "YouTube-VIS", "2019", "50.2"]


def test_a_section_lists_its_fields_with_the_defaults_of_a_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs.main(["config", "tracker", "train", "--preset", "ovis_r50"])
    shown = capsys.readouterr().out
    assert "tracker.mask_nms=0.3  (number, 0 to 1)" in shown
    assert "train.pairs_per_batch=16" in shown
    jobs.main(["config"])
    assert "tracker         Online association" in capsys.readouterr().out


def test_a_shell_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    jobs.main(["completion", "bash"])
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        typed = " ".join(words)
        code = f"{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _idol\n"
        code += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("idol", "tr") == ["track", "train"]
    assert completed("idol", "track", "--min") == ["--min-score"]
    assert "--folds" in completed("idol", "sweep", "--f")
    for shell in ("zsh", "fish"):
        jobs.main(["completion", shell])
        assert "min-score" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["models"], ["config", "tracker"], ["completion", "bash"]])
def test_what_only_prints_loads_nothing_heavy_and_bears_a_closed_pipe(words: list[str]) -> None:
    code = (
        f"import sys, jobs; jobs.main({words!r}); "
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    command = f"{sys.executable} -c {shlex.quote(code)} | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout
    assert not {"torch", "ray", "pyarrow", "cv2", "scipy", "Traceback"} & set(done.stderr.split())
