"""What the README shows can be typed: its commands know their flags, its Python names exist."""

import ast
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from idol import presets
from pipelines.sweep import space as search_space

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")),
)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)


def commands() -> list[list[str]]:
    """Every `$ python -m jobs.X ...` of the pages as words; a submitted job by itself too."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            text = block.replace("\\\n", " ")
            for line in text.splitlines():
                line = re.sub(r"^\$ \.venv/bin/idol ", "$ python -m jobs.", line)
                words = shlex.split(line, comments=True) if line.startswith("$ python -m") else []
                while "-m" in words:
                    words = words[words.index("-m") + 1 :]
                    end = words.index("--") if "--" in words else len(words)
                    if words[0].startswith("jobs."):
                        found.append(words[:end])
    return found


def test_the_pages_show_commands() -> None:
    shown = {words[0] for words in commands()}
    assert {"jobs.prepare", "jobs.train", "jobs.evaluate", "jobs.sweep", "jobs.submit"} <= shown


@pytest.mark.parametrize("job", sorted({words[0] for words in commands()}))
def test_every_flag_that_is_shown_is_known(job: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", job, "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"--[a-z][a-z-]*", done.stdout))
    shown = {
        word.partition("=")[0]
        for words in commands()
        if words[0] == job
        for word in words
        if word.startswith("--")
    }
    assert shown <= known, f"{job} does not know {sorted(shown - known)}"


def test_every_name_of_the_python_example_exists() -> None:
    examples = blocks("README.md", "python")
    assert len(examples) == 2
    chains = set()
    for node in ast.walk(ast.parse("\n".join(examples))):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("idol."):
            chains.add(ast.unparse(node))
    assert {"idol.load", "idol.track"} <= chains
    for chain in sorted(chains):
        if "(" in chain:  # of a result, not of the package
            continue
        found = importlib.import_module("idol")
        for part in chain.split(".")[1:]:
            found = getattr(found, part)


def test_the_own_video_comes_third_and_before_line_40() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    shown = [n for n, line in enumerate(lines, 1) if line.startswith("$ ")]
    assert "idol track my.mp4" in lines[shown[2] - 1]
    assert shown[2] < 40


def test_the_files_that_pages_name_are_there() -> None:
    pages = [*PAGES, "CONTRIBUTING.md"]
    named = {
        (page, path)
        for page in pages
        for path in re.findall(
            r"`((?:ops|idol|pipelines|jobs|tests|benchmarks|docs)/[\w/.-]+)`",
            (ROOT / page).read_text(),
        )
    }
    assert len(named) > 20
    missing = sorted(f"{page}: {path}" for page, path in named if not (ROOT / path).exists())
    assert not missing, "\n".join(missing)


def test_every_sweep_that_is_shown_is_over_fields_with_an_effect() -> None:
    shown = [words for words in commands() if words[0] == "jobs.sweep"]
    for words in shown:
        pairs = [*itertools.pairwise(words)]
        given = {
            kind: [b for a, b in pairs if a == f"--{kind.replace('_', '-')}"]
            for kind in ("grid", "choice", "uniform", "log_uniform")
        }
        base = presets.by_name("ytvis19_r50" if any("/data/" in word for word in words) else "tiny")
        space = search_space.parse(given, base, [*search_space.TRACKER, *search_space.TRAINING])
        assert search_space.idle(space, base) == []
    assert len(shown) > 2
