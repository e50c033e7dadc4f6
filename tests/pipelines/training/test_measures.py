"""What a worker measures, by a clock that the test turns, and what Grafana asks for."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from idol.config import LossConfig
from pipelines.training import measures

ROOT, CPU = Path(__file__).resolve().parents[3], torch.device("cpu")


def fields(cls):
    return [field.name for field in dataclasses.fields(cls)]


def test_speed_counts_from_its_making_and_waits_only_where_told(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(measures.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measures.time, "process_time", lambda: 2 * now[0])
    measuring = measures.Speed()
    for waited, worked in ((1.0, 3.0), (0.5, 3.5)):
        with measuring.waiting():
            now[0] += waited
        now[0] += worked
    found = measuring.measured(48)
    assert found == pytest.approx(
        {"images_per_second": 6.0, "data_wait_share": 1.5 / 8, "cpus": 2.0}
    )


def test_a_board_of_grafana_asks_for_what_training_tells():
    board = json.loads((ROOT / "deploy" / "grafana-training.json").read_text())
    asked = {
        target["expr"].removeprefix("ray_idol_train_")
        for panel in board["panels"]
        for target in panel["targets"]
        if target["expr"].startswith("ray_idol_")
    }
    told = {"step", "loss", "gradient_norm", "learning_rate"} | set(measures.Speed().measured(1))
    told |= {f"loss_{name}" for name in fields(LossConfig)} | set(measures.machine(CPU))
    told |= {"gpu_memory_gb", "gpu_utilisation"}  # of a GPU
    told |= {"validation_AP", "validation_AP50", "validation_HOTA"}
    assert asked <= told
    assert {"images_per_second", "loss_reid", "validation_AP"} <= asked
