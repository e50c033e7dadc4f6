"""A sweep tries what it was asked to try, once, and finds what was hidden."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idol.config import TrackerConfig
from pipelines import configuration, detect, evaluate, experiment_log, stored, sweep
from pipelines.errors import PipelineError
from tests.pipelines import perfect

BASE = TrackerConfig(
    weighting="paper", similarity="cosine", match_threshold=0.99, keep_best=False, prune_short=0
)
"""Neighbouring frames of an instance have a cosine of 0.95: at 0.99 every track breaks."""


def test_a_grid_is_parsed_by_the_types_of_the_fields() -> None:
    assert sweep.parse_grid(
        ["tracker.tau=0,0.5", "tracker.weighting=paper,released", "tracker.same_class=true,false"]
    ) == {"tau": [0.0, 0.5], "weighting": ["paper", "released"], "same_class": [True, False]}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "nothing to sweep"),
        (["tracker.tau"], "tracker.field=value"),
        (["tracker.tua=1"], "Did you mean 'tau'"),
        (["detect.box_nms=0.5"], "cannot be swept on stored detections"),
        (["tracker.tau=-1"], "tau must be >= 0"),
        (["tracker.memory_length=1.5"], "must be int"),
        (["tracker.tau=1,1.0"], "repeats"),
        (["tracker.tau=1", "tracker.tau=2"], "repeats"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(grid: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep.parse_grid(grid)


def test_the_trials_are_the_base_and_every_other_combination() -> None:
    grid = {"tau": [0.5, 1.0], "memory_length": [1, 3]}
    found = sweep.trials(TrackerConfig(), grid)
    assert [t.values for t in found] == [
        {"tau": 0.5, "memory_length": 3},  # the base
        {"tau": 0.5, "memory_length": 1},
        {"tau": 1.0, "memory_length": 1},
        {"tau": 1.0, "memory_length": 3},
    ]
    assert all(getattr(t.config, k) == v for t in found for k, v in t.values.items())
    assert len({t.hash for t in found}) == 4


def test_every_field_of_the_tracker_changes_the_hash() -> None:
    base = TrackerConfig()
    other: dict[type, Callable[[Any], Any]] = {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        float: lambda v: v / 2 + 0.03,
        str: lambda v: {"released": "paper", "greedy": "argmax"}[v],
    }
    hashes = {sweep.config_hash(base)}
    for field in dataclasses.fields(base):
        value = getattr(base, field.name)
        changed = dataclasses.replace(base, **{field.name: other[type(value)](value)})
        hashes.add(sweep.config_hash(changed))
    assert len(hashes) == 1 + len(dataclasses.fields(base))


def test_the_ledger_passes_over_a_torn_line_and_other_detections(tmp_path: Path) -> None:
    ledger = sweep.Ledger(tmp_path / "ledger.jsonl", "a")
    assert ledger.read() == {}
    ledger.append("x", {"AP": 0.5})
    sweep.Ledger(ledger.path, "b").append("y", {"AP": 0.6})
    with ledger.path.open("a") as file:
        file.write('{"input": "a", "hash": "z", "metr')
    assert ledger.read() == {"x": {"AP": 0.5}}
    # What comes after a torn line must not be lost with it.
    ledger.append("w", {"AP": 0.7})
    assert ledger.read() == {"x": {"AP": 0.5}, "w": {"AP": 0.7}}


@pytest.fixture
def evaluated(
    make_videos: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """An evaluation of perfect detections, with frames of one video missing."""
    monkeypatch.setattr(detect, "run", perfect.run)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    videos = make_videos([6, 3, 5, 4])
    videos.frame(4, 0).unlink()
    out = tmp_path / "evaluated"
    evaluate.run(
        videos.write(), perfect.weights(tmp_path / "w.safetensors"), out, log_to=tmp_path / "log"
    )
    return out


@pytest.mark.ray
def test_the_planted_best_is_found_logged_and_accepted_by_evaluate(
    ray_local: None, evaluated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    grid = {"match_threshold": [0.5, 0.98], "memory_length": [1]}
    found = sweep.run(evaluated, out, grid, base=BASE, processes=2)
    assert found.extra["base"]["metrics"]["AP"] < 0.1
    best = found.extra["best"]
    assert best["values"] == {"match_threshold": 0.5, "memory_length": 1}
    # Two of the eight true instances are in the video without frames.
    assert best["metrics"]["AR100"] == pytest.approx(0.75)
    chosen = configuration.tracker_config(out / sweep.BEST)
    assert chosen == dataclasses.replace(BASE, match_threshold=0.5, memory_length=1)
    again = evaluate.run(
        tmp_path / "data" / "instances.json",
        tmp_path / "w.safetensors",
        tmp_path / "again",
        tracker=out / sweep.BEST,
    )
    # What the sweep reckons from overlaps is what scoring the masks gives.
    assert again.extra["metrics"] == pytest.approx(best["metrics"])
    table = json.loads((out / sweep.TABLE).read_text())
    assert len(sweep.sweep_rows(table)) == 3
    assert sweep.sweep_rows(table)[0].default
    assert "<svg" in (out / sweep.PAGE).read_text()
    runs = experiment_log.runs(out)
    assert sum("mlflow.parentRunId" in run.data.tags for run in runs) == 3
    assert not (out / "tune").exists()


@pytest.mark.ray
def test_a_resumed_sweep_repeats_no_finished_configuration(
    ray_local: None, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    asked: list[int] = []

    def half(todo: list[sweep.Trial], *args: Any) -> None:
        asked.append(len(todo))
        source, truths, missed, ledger, _ = args
        videos = sweep.load(source, truths)
        # Killed after the first, the first time.
        for trial in todo[:1] if len(asked) == 1 else todo:
            metrics = sweep.score(videos, missed, trial.config, source.category_ids)
            ledger.append(trial.hash, metrics.stats)

    monkeypatch.setattr(sweep, "_tune", half)
    grid = {"match_threshold": [0.5, 0.98]}
    with pytest.raises(KeyError):
        sweep.run(evaluated, out, grid, base=BASE)
    found = sweep.run(evaluated, out, grid, base=BASE)
    assert asked == [3, 2]
    assert found.extra["best"]["values"] == {"match_threshold": 0.5}
    assert sweep.run(evaluated, out, grid, base=BASE) == found
    assert asked == [3, 2]


def test_a_sweep_below_the_stored_floor_is_refused_before_it_starts(
    evaluated: Path, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError, match=r"score_threshold is 0\.02.*above 0\.05"):
        sweep.run(evaluated, tmp_path / "sweep", {"score_threshold": [0.02, 0.2]})
    with pytest.raises(ValueError, match="no metric 'HOTA'"):
        sweep.run(evaluated, tmp_path / "sweep", {"tau": [0.2]}, objective="HOTA")
    assert not (tmp_path / "sweep").exists()


def test_stored_frames_are_scored_as_the_tracker_sees_them(evaluated: Path) -> None:
    source = stored.read(evaluated / evaluate.DETECTIONS)
    assert source.has_truth
    assert [v.video_id for v in source.videos] == [1, 2, 3]
    assert [len(list(source.frames(v))) for v in source.videos] == [6, 3, 5]
