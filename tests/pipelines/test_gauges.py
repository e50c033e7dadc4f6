"""What stages tell Ray's metrics, and what Grafana asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines import cluster, gauges

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Of each metric what it was set to, or what was added."""
    found: dict[str, list[float]] = {}

    class Metric:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, value: float) -> None:
            found.setdefault(self.name, []).append(value)

        inc = set

    def metric(kind: str, stage: str, name: str) -> Any:
        return Metric(f"{kind} {stage} {name}")

    monkeypatch.setattr(gauges, "_metric", metric)
    monkeypatch.setattr(gauges, "_connected", lambda: True)
    return found


def test_a_bar_tells_its_speed_and_what_is_still_to_come(
    told: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(gauges.time, "monotonic", lambda: now[0])
    with cluster.progress(60, "detect", "frames") as bar:
        for passed in (0.5, 1.5, 0.1):
            now[0] += passed
            bar.update(20)
    assert told["Gauge detect queue"] == [60, 20, 0]
    assert told["Gauge detect frames_per_second"] == pytest.approx([20, 200])


def test_a_counter_is_known_before_it_counts(told: dict[str, list[float]]) -> None:
    gauges.count("detect", "rejects", 0)
    assert told == {}
    gauges.count("detect", "rejects", 2)
    assert told == {"Counter detect rejects": [2.0]}


def test_the_board_asks_for_what_the_code_tells() -> None:
    board = json.loads((ROOT / "deploy" / "grafana-stages.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_idol_(\w+)", target["expr"])
    }
    code = "".join(path.read_text() for path in (ROOT / "pipelines").rglob("*.py"))
    counted = {f"{s}_{n}_total" for s, n in re.findall(r'gauges.count\("(\w+)", "(\w+)"', code)}
    bars = re.findall(r'progress\([^"]*"(\w+)", "(\w+)"\)', code)
    units = [*bars, *((stage, "videos") for stage in ("track", "score"))]  # of cluster.videos
    gauged = {
        f"{stage}_{name}" for stage, unit in units for name in (f"{unit}_per_second", "queue")
    }
    gauged |= {"sweep_trials", "sweep_queue", "sweep_rejects", "train_data_wait_share"}
    assert len(counted) == 4
    assert asked <= counted | gauged, asked - counted - gauged
    assert counted <= asked
