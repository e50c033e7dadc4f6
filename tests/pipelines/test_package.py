"""What would be sent to a cluster is said as Ray packs it, and refused where it is too large."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray._private.runtime_env import packaging

from pipelines import package
from pipelines.errors import PipelineError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some code, and what two files of rules and Ray itself leave out."""
    (tmp_path / ".gitignore").write_text("/runs/\n*.pyc\n")
    (tmp_path / ".rayignore").write_text("docs/\n")
    for name in ("code/a.py", "code/a.pyc", "runs/x.bin", "docs/y.md", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_what_is_sent_is_what_rays_packer_packs(folder: Path) -> None:
    found = package.of(folder)
    archive = folder.parent / f"{folder.name}.zip"
    packaging.create_package(
        str(folder), archive, include_gitignore=True, excludes=[".git", ".venv"]
    )
    assert abs(found.bytes - archive.stat().st_size) < 1000
    assert found.left_out == (".git/", "docs/", "runs/")
    assert (found.files, found.largest[0]) == (3, ("code/a.py", 1000))
    assert str(found) == "3 files, 0.0 MiB; .git/, docs/, runs/ stay here"


def test_a_package_that_is_too_large_is_refused_before_it_is_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.ray_constants.DASHBOARD_CLIENT_MAX_SIZE", 1500)
    with pytest.raises(PipelineError, match=r"takes 0\. Name data .* code/a\.py \(0\.0 MiB\)"):
        package.check(folder)


def test_this_repository_fits_and_leaves_its_tests_here() -> None:
    found = package.check(ROOT)
    assert {"tests/", "docs/", "benchmarks/"} <= set(found.left_out)
    assert found.bytes < found.limit / 2
