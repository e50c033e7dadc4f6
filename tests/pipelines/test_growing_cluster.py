"""Every stage on a cluster that has no CPU at all until one is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from idol.synthetic import SyntheticConfig, write_dataset
from tests.pipelines.growing import growing

_LIMIT_S = 180.0  # of one job
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_stages_bring_the_nodes_they_need(tmp_path: Path) -> None:
    annotations = str(write_dataset(tmp_path / "videos", SyntheticConfig.easy(), 6, 1234))

    def job(*words: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
        assert done.returncode == 0, done.stderr
        notes.append(done.stderr)
        line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return line

    notes: list[str] = []
    with growing(tmp_path) as environment:
        prepared = job("jobs.prepare", "--annotations", annotations, "--out", str(tmp_path / "p"))
        out = str(tmp_path / "evaluated")
        evaluated = job(
            *("jobs.evaluate", "--annotations", annotations, "--checkpoint", "shipped"),
            *("--out", out, "--actors", "1..4", "--set", "detect.frames_per_shard=4"),
        )
        swept = job(
            *("jobs.sweep", "--evaluation", out, "--out", str(tmp_path / "sweep")),
            *("--search", "random", "--samples", "6"),
        )
        # On a node with a GPU that only the scheduler believes in: brought, and then refused.
        refused = subprocess.run(
            [
                *(sys.executable, "-m", "jobs.evaluate", "--annotations", annotations),
                *("--checkpoint", "shipped", "--out", str(tmp_path / "gpu"), "--device", "gpu"),
                *("--actors", "1"),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    assert "Waiting up to" in notes[0]
    assert prepared["rows"] > 0
    assert evaluated["rows"] > 0
    assert swept["configurations"] == 7
    assert refused.returncode != 0
    assert "0 GPUs. Waiting" in refused.stderr or "and 0. Waiting" in refused.stderr
    assert "sees no CUDA on its node" in refused.stderr

    # Where the nodes came from changes nothing.
    alone = tmp_path / "alone"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.evaluate", "--annotations", annotations),
            *("--checkpoint", "shipped", "--out", str(alone), "--actors", "1"),
            *("--set", "detect.frames_per_shard=4"),
        ],
        env={k: v for k, v in environment.items() if not k.startswith("RAY_")},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "report.json"):
        assert (alone / name).read_bytes() == (Path(out) / name).read_bytes()
