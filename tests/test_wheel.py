"""What is installed is whole: every room imports from the wheel, with the files it reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("ops", "idol", "pipelines", "jobs")

_IMPORT = """
import importlib, json, pathlib, sys
root = pathlib.Path(sys.argv[1])
folders = sorted(path.parent.relative_to(root).as_posix() for path in root.rglob("__init__.py"))
names = [folder.replace("/", ".") for folder in folders]
found = {name: importlib.import_module(name).__file__ for name in names}
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install` of this repository puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target = folder / "source", folder / "target"
    for room in ROOMS:  # a copy: building writes beside its sources
        shutil.copytree(
            ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__", "*.nb[ic]")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    command = [*(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def test_every_room_is_imported_from_what_was_installed(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, str(installed)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(found) == expected
    assert all(Path(file).is_relative_to(installed) for file in found.values())


def test_the_files_that_rooms_read_are_installed(installed: Path) -> None:
    patterns = ("ops/csrc/*.cu", "idol/weights/*.safetensors", "pipelines/report/templates/*")
    patterns += ("pipelines/*.json",)
    there = {path.relative_to(ROOT).as_posix() for p in patterns for path in ROOT.glob(p)}
    assert {Path(name).suffix for name in there} == {".cu", ".safetensors", ".html", ".js", ".json"}
    assert [name for name in sorted(there) if not (installed / name).is_file()] == []
