"""Every stage on a cluster that has no CPU at all until one is asked for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from tests.pipelines.growing import growing

_LIMIT_S = 180.0  # of one job
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A job in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The last line of a job that has to succeed."""
    assert done.returncode == 0, done.stderr
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def test_stages_bring_the_nodes_they_need(tmp_path: Path) -> None:
    annotations = str(write_dataset(tmp_path / "videos", SyntheticConfig.easy(), 6, 1234))
    evaluate = ("jobs.evaluate", "--annotations", annotations, "--checkpoint", "shipped")
    small = ("--set", "detect.frames_per_shard=4")
    grown, alone = tmp_path / "evaluated", tmp_path / "alone"
    with growing(tmp_path) as environment:
        prepared = run(
            environment,
            *("jobs.prepare", "--annotations", annotations, "--out", str(tmp_path / "pairs")),
        )
        assert result(prepared)["rows"] > 0
        assert "Waiting up to" in prepared.stderr
        evaluated = run(environment, *evaluate, *small, "--out", str(grown), "--actors", "1..4")
        assert result(evaluated)["rows"] > 0
        swept = run(
            environment,
            *("jobs.sweep", "--evaluation", str(grown), "--out", str(tmp_path / "sweep")),
            *("--search", "random", "--samples", "6"),
        )
        assert result(swept)["configurations"] == 7
        # On a node with a GPU that only the scheduler believes in: brought, and then refused.
        refused = run(
            environment,
            *(*evaluate, "--out", str(tmp_path / "gpu"), "--device", "gpu", "--actors", "1"),
        )
    assert refused.returncode != 0
    assert re.search(r"1 CPUs and 1 GPUs, but Ray has \d+ and 0\. Waiting", refused.stderr)
    assert "sees no CUDA on its node" in refused.stderr

    # Where the nodes came from changes nothing.
    own = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    result(run(own, *evaluate, *small, "--out", str(alone), "--actors", "1"))
    for name in ("results.json", "report.json"):
        assert (alone / name).read_bytes() == (grown / name).read_bytes()
