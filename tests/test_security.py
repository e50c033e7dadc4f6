"""What SECURITY.md promises of this repository, where a test can see it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("jobs", "pipelines", "idol", "ops")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

JUSTIFIED = {"B301", "B615", "B704"}
"""Checks of bandit that may be off at a line: SECURITY.md says why."""

UNPICKLED = {
    "idol/spool.py", "pipelines/errors.py", "pipelines/stages/clip_results.py",
    "pipelines/stages/detect.py", "pipelines/stages/pairs.py", "pipelines/training/loop.py",
}  # fmt: skip
"""Where pickles of the same job are loaded; nothing else is."""


def calls(path: Path) -> set[str]:
    """The dotted names that a file calls."""
    tree = ast.parse(path.read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_pickles_are_loaded_only_where_security_md_says() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in FILES
        if calls(path) & {"pickle.loads", "pickle.load", "cloudpickle.loads", "cloudpickle.load"}
    }
    assert found == UNPICKLED


def test_weights_are_read_as_data_everywhere() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_no_text_becomes_code() -> None:
    forbidden = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}
    assert not [path for path in FILES if calls(path) & forbidden]


def test_every_exception_from_the_audit_names_its_check() -> None:
    for path in FILES:
        for found in re.findall(r"#\s*nosec(.*)", path.read_text()):
            assert set(found.split()) <= JUSTIFIED
            assert found.split(), f"{path} has a bare nosec"


def test_nothing_that_we_start_listens_to_the_world() -> None:
    files = [*FILES, ROOT / "Makefile", ROOT / "cluster.yaml", *(ROOT / "deploy").rglob("*.*")]
    assert not [path for path in files if "0.0.0.0" in path.read_text()]


@pytest.mark.slow
def test_the_audit_finds_nothing() -> None:
    command = ["bandit", "--quiet", "--configfile", "pyproject.toml", "--recursive", *ROOMS]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
