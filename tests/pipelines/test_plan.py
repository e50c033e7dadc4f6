"""A dry run: what a job would do, from the input and measured slopes, with nothing written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from idol import presets
from idol.config import override
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from jobs import evaluate, prepare
from pipelines import plan
from pipelines.training.workers import Workers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three short videos."""
    config = SyntheticConfig(size=(64, 96), length=(4, 4))
    return str(write_dataset(tmp_path_factory.mktemp("plan"), config, 3, 0))


def entries(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object of the slopes that has a number."""
    inner = [found for part in value.values() if isinstance(part, dict) for found in entries(part)]
    return inner + [value] * any(isinstance(part, float) for part in value.values())


def test_every_slope_says_which_benchmark_has_printed_it_and_where() -> None:
    found = entries(dict(plan.slopes()))
    assert len(found) >= 8
    for one in found:
        benchmark, page = re.findall(r"(?:benchmarks|docs)/[\w/.]+\w", one["from"])
        assert (ROOT / benchmark).is_file(), one
        assert benchmark.removesuffix(".py").replace("/", ".") in (ROOT / page).read_text(), one


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    small = ("--annotations", labels, "--out", out, "--dry-run")
    prepare.main([*small, "--preset", "tiny", "--set", "pairs.rows_per_shard=4"])
    told = capsys.readouterr()
    (stage,) = json.loads(told.out)["stages"]
    assert (stage["shards"], stage["work"]) == (3, "12 rows of 3 videos")
    assert re.search(r"^prepare  12 rows of 3 videos  3 ", told.err, re.MULTILINE)
    words = ("--checkpoint", "shipped", "--set", "detect.frames_per_shard=4", "--actors", "1..9")
    evaluate.main([*small, *words])
    line = json.loads(capsys.readouterr().out)
    assert [one["stage"] for one in line["stages"]] == ["detect", "track", "score and report"]
    assert [one["workers"] for one in line["stages"]] == [3, 1, 1]
    assert line["seconds"] == pytest.approx(sum(s["seconds"] for s in line["stages"]), abs=0.1)
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_has_measured_is_not_guessed() -> None:
    (tiny,) = plan.train(presets.by_name("tiny"), Workers(count=2), False)
    half = override(presets.by_name("tiny"), [f"train.steps={tiny.shards // 2}"])
    (short,) = plan.train(half, Workers(count=2), False)
    assert tiny.seconds is not None
    assert short.seconds is not None
    start = plan.slopes()["train"]["start_s"]
    assert (short.seconds - start) == pytest.approx((tiny.seconds - start) / 2)
    (gpus,) = plan.train(presets.by_name("tiny"), Workers(count=2, gpus=True), False)
    assert (gpus.seconds, gpus.gpus) == (None, 1.0)
    assert "not measured" in plan.table([gpus])
