"""A sweep tries what it was asked to try, once, and finds what was hidden."""

import dataclasses
import html
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from idol.config import TrackerConfig, to_dict
from pipelines import configuration
from pipelines.errors import ManifestError, PipelineError
from pipelines.report import experiment_log, page, run_page
from pipelines.stages import detect, evaluate
from pipelines.storage import layout, manifest, paths, stored
from pipelines.storage.sweep_report import (
    Configuration,
    Failure,
    Ledger,
    SweepReport,
    Trial,
    furthest,
)
from pipelines.sweep import every_sweep, tracker_sweep, tuning
from pipelines.sweep.search import SearchConfig
from pipelines.sweep.space import Range
from pipelines.sweep.tracker_sweep import TrackerSweep
from pipelines.sweep.tracker_trials import TrackerTrials
from pipelines.sweep.trainable import Recorder
from tests.object_storage import BUCKET, S3Server
from tests.pipelines import perfect
from tests.pipelines.sweep.in_process import Runs

BASE = TrackerConfig(
    weighting="paper", similarity="cosine", match_threshold=0.99, keep_best=False, prune_short=0
)
"""Neighbouring frames of an instance have a cosine of 0.95: at 0.99 every track breaks."""


def hash_of(config: TrackerConfig) -> str:
    return manifest.hash_value(to_dict(config))


def test_every_field_of_the_tracker_changes_the_hash() -> None:
    base = TrackerConfig(similarity="cosine")
    other: dict[type, Callable[[Any], Any]] = {
        bool: lambda v: not v,
        int: lambda v: v + 1,
        float: lambda v: v / 2 + 0.03,
        str: lambda v: {"released": "paper", "cosine": "paper", "greedy": "argmax", "": "a.b:C"}[v],
    }
    hashes = {hash_of(base)}
    for field in dataclasses.fields(base):
        value = getattr(base, field.name)
        changed = dataclasses.replace(base, **{field.name: other[type(value)](value)})
        hashes.add(hash_of(changed))
    assert len(hashes) == 1 + len(dataclasses.fields(base))


def trial(name: str, **fields: Any) -> Trial:
    return Trial(**{"number": 0, "hash": name, "values": {}, "budget": 4, "value": 0.5,
                    "metrics": {"AP": 0.5}, **fields})  # fmt: skip


def test_the_ledger_ignores_a_torn_line_and_other_detections(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "a")
    assert ledger.read() == []
    ledger.append(trial("x", folds=[0.4, 0.6]))
    Ledger(ledger.path, "b").append(trial("y"))
    with ledger.path.open("a") as file:
        file.write('{"input": "a", "hash": "z", "metr')
    assert ledger.read() == [trial("x", folds=[0.4, 0.6])]
    # What comes after a torn line must not be lost with it.
    ledger.append(trial("w"))
    assert [found.hash for found in ledger.read()] == ["x", "w"]


def test_a_trial_whose_line_was_damaged_is_tried_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "a")
    ledger.append(trial("x", value=0.25))
    ledger.append(trial("y", value=0.5))
    data = ledger.path.read_bytes()
    for broken in (data.replace(b"0.25", b"0.95"), data.replace(b"0.25", b"0.\xff5")):
        ledger.path.write_bytes(broken)
        assert [found.hash for found in ledger.read()] == ["y"]


def test_a_ledger_in_a_bucket_keeps_every_trial_in_order(s3: S3Server, tmp_path: Path) -> None:
    ledger = Ledger(paths.at(f"s3://{BUCKET}/{tmp_path.name}/ledger.jsonl"), "a")
    assert ledger.read() == []
    for name in ("x", "w"):
        ledger.append(trial(name))
    Ledger(ledger.path, "b").append(trial("y"))
    ledger.append(trial("v"))
    assert [found.hash for found in ledger.read()] == ["x", "w", "v"]
    assert len(list(ledger.path.parent.glob("ledger*.jsonl"))) == 4


def test_a_ledger_that_cannot_be_written_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(OSError, match=r"ledger\.jsonl"):
        Ledger(tmp_path / "ledger.jsonl", "a").append(trial("x"))


def test_the_furthest_trial_of_each_configuration_counts() -> None:
    given = (("b", 2, 4), ("a", 1, 8), ("b", 2, 8), ("a", 1, 4))
    found = furthest([trial(name, number=n, budget=budget) for name, n, budget in given])
    assert [(t.hash, t.budget) for t in found] == [("a", 8), ("b", 8)]


def test_lists_that_were_swept_can_be_drawn() -> None:
    trials = [trial("a", values={"stretch": [64, 96]}), trial("b", values={"stretch": [96, 128]})]
    report = SweepReport(
        objective="AP", budget=4, unit="steps", best=0, trials=trials, held_out=None, failed=[]
    )
    shown = page.render(page.Report(title="sweep", **run_page.sweep_part(report, "lists")))
    assert shown.count("[96, 128]") >= 2  # in the chart and in the table


def test_a_result_of_another_configuration_stops_the_sweep(evaluated: Path, tmp_path: Path) -> None:
    source = stored.read(evaluated / layout.DETECTIONS)
    trials = tracker_sweep.workload(wanted(evaluated, {"tau": [1.0]}), source)
    recorder = Recorder(trials, Ledger(tmp_path / "ledger.jsonl", "a"), None, "AP")
    values = {"tracker.tau": 1.0}
    right = trial(hash_of(dataclasses.replace(BASE, tau=1.0)), values=values)
    recorder.on_trial_result(0, (), None, dataclasses.asdict(right))
    for wrong in (trial(hash_of(BASE), values=values), dataclasses.replace(right, values={})):
        with pytest.raises(RuntimeError, match="used another configuration"):
            recorder.on_trial_result(0, (), None, dataclasses.asdict(wrong))
    assert Ledger(tmp_path / "ledger.jsonl", "a").read() == [right]


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
    request = evaluate.Request(
        annotations=videos.write(), checkpoint=perfect.weights(tmp_path / "w.safetensors")
    )
    evaluate.run(request, out, log_to=tmp_path / "log", reject_limit=0.5)
    return out


def report_in(out: Path) -> SweepReport:
    """The report in a directory, which says the same when it is written again."""
    plain = json.loads((out / layout.REPORT).read_text())
    found = SweepReport.from_dict(plain)
    assert found.to_dict() == plain
    return found


def wanted(evaluated: Path, grid: dict[str, list[Any]], **search: Any) -> TrackerSweep:
    return TrackerSweep(
        evaluated=evaluated,
        base=BASE,
        space=tracker_sweep.grid(grid),
        search=SearchConfig(**{"folds": 2, **search}),
    )


def here(monkeypatch: pytest.MonkeyPatch, stop: list[int | None]) -> list[Trial]:
    """Replace Ray Tune by a loop in this process that is killed after stop.pop(0) results."""
    runs = Runs(*stop)
    monkeypatch.setattr(tuning, "run", runs)
    return runs.done


def test_the_best_as_a_command_is_the_nearest_named_tracker_with_its_differences() -> None:
    chosen = dataclasses.replace(TrackerConfig.robust(), match_threshold=0.4, same_class=True)
    words = tracker_sweep.command(chosen)
    assert words.endswith(
        "--tracker robust --set 'tracker.match_threshold=0.4' --set 'tracker.same_class=true'"
    )
    assert tracker_sweep.command(TrackerConfig()).endswith("--tracker released")


@pytest.mark.ray
def test_the_planted_best_is_found_logged_and_accepted_by_evaluate(
    ray_local: None, evaluated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    grid = {"match_threshold": [0.5, 0.98], "memory_length": [1]}
    found = tracker_sweep.run(wanted(evaluated, grid), out, max_concurrent=2)
    assert found.extra["base"]["metrics"]["AP"] < 0.1
    best = found.extra["best"]
    assert best["values"] == {"match_threshold": 0.5, "memory_length": 1}
    # Two of the eight true instances are in the video without frames.
    assert best["metrics"]["AR100"] == pytest.approx(0.75)
    chosen = configuration.tracker_config(out / every_sweep.BEST)
    assert chosen == dataclasses.replace(BASE, match_threshold=0.5, memory_length=1)
    tried = {t.values["match_threshold"]: t.metrics for t in report_in(out).trials}
    for value in (0.5, 0.98):
        request = evaluate.Request(
            annotations=tmp_path / "data" / "instances.json",
            checkpoint=tmp_path / "w.safetensors",
            tracker=out / every_sweep.BEST,
            overrides=[f"tracker.match_threshold={value}"],
        )
        again = evaluate.run(request, tmp_path / f"again-{value}", reject_limit=0.5, log=False)
        # What the sweep reckons is what evaluate gives, to the last digit.
        assert again.extra["metrics"] == tried[value]
    rows = run_page.sweep_rows(report_in(out))
    assert len(rows) == 3
    assert rows[0].default
    assert "<svg" in (out / layout.PAGE).read_text()
    runs = experiment_log.runs(out)
    assert sum("mlflow.parentRunId" in run.data.tags for run in runs) == 3


@pytest.mark.slow
@pytest.mark.ray
def test_a_configuration_that_kills_its_process_or_fails_is_left_out(
    ray_local: None, evaluated: Path, tmp_path: Path
) -> None:
    asked = wanted(evaluated, {"match_threshold": [0.5, 0.6, 0.7]})
    source = stored.read(evaluated / layout.DETECTIONS)
    ledger = Ledger(tmp_path / "ledger.jsonl", "")
    whole = tracker_sweep.workload(asked, source)
    work = Trapped(**{f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)})
    trials, failed = tuning.run(asked.space, asked.search, work, ledger, max_concurrent=1)
    assert [t.values for t in ledger.read()] == [{}, {"tracker.match_threshold": 0.7}]
    assert ledger.read() == trials
    assert [f.values["tracker.match_threshold"] for f in failed] == [0.5, 0.6]
    assert failed[0].reason == "ArithmeticError: planted"
    assert "died" in failed[1].reason


@pytest.mark.ray
def test_a_search_without_its_base_is_not_finished(
    ray_local: None, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [Failure(values={}, reason="no more")]
    monkeypatch.setattr(tuning, "run", lambda *_, **__: ([], refused))
    with pytest.raises(PipelineError, match=r"0 of 4 configurations .*no more"):
        tracker_sweep.run(wanted(evaluated, {"match_threshold": [0.5, 0.6, 0.7]}), tmp_path / "s")
    assert not (tmp_path / "s" / every_sweep.BEST).exists()


class Trapped(TrackerTrials):
    """A workload that fails at one configuration, and at the next takes its process along."""

    def measure(self, loaded: Any, of: Configuration, after: int) -> Iterator[Trial]:
        threshold = of.values.get("tracker.match_threshold")
        if threshold == 0.5:
            raise ArithmeticError("planted")
        if threshold == 0.6:
            os._exit(1)
        return super().measure(loaded, of, after)


def test_a_resumed_sweep_repeats_no_finished_configuration(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "sweep", tmp_path / "whole"
    done = here(monkeypatch, [2, 1, None, None])
    asked = wanted(evaluated, {"match_threshold": [0.5, 0.98], "memory_length": [1, 2]})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tracker_sweep.run(asked, out)
    # From the directory alone, as with --resume.
    resumed = TrackerSweep.from_dict(every_sweep.read_settings(out))
    assert resumed == dataclasses.replace(asked, evaluated=evaluated.resolve())
    found = tracker_sweep.run(resumed, out)
    assert [t.number for t in done] == [0, 1, 2, 3, 4]
    assert tracker_sweep.run(asked, out) == found
    assert len(done) == 5
    undisturbed = tracker_sweep.run(asked, whole)
    assert found.extra == undisturbed.extra
    for name in (layout.REPORT, every_sweep.BEST, layout.PAGE):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(ManifestError, match="no sweep to go on with"):
        every_sweep.read_settings(tmp_path)


@pytest.mark.ray
def test_asha_stops_the_poor_after_few_videos_and_a_second_run_repeats_nothing(
    ray_local: None, evaluated: Path, tmp_path: Path
) -> None:
    asked = dataclasses.replace(
        wanted(
            evaluated, {"match_threshold": [0.5, 0.99, 0.985]}, scheduler="asha",
            reduction_factor=2, grace_period=2, seed=2,
        ),
        base=dataclasses.replace(BASE, match_threshold=0.4),
    )  # fmt: skip
    source = stored.read(evaluated / layout.DETECTIONS)
    work = tracker_sweep.workload(asked, source)
    ledger = Ledger(tmp_path / "ledger.jsonl", "")
    trials, failed = tuning.run(asked.space, asked.search, work, ledger, max_concurrent=1)
    assert failed == []
    reached = {t.values.get("tracker.match_threshold"): t.budget for t in trials}
    assert reached == {None: 4, 0.5: 4, 0.99: 2, 0.985: 2}
    before = ledger.path.read_bytes()
    assert tuning.run(asked.space, asked.search, work, ledger, max_concurrent=1) == (trials, [])
    assert ledger.path.read_bytes() == before


def test_asha_marks_what_it_stopped_and_mixes_can_be_maximised(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, [None])
    asked = dataclasses.replace(
        wanted(
            evaluated,
            {},
            method="random",
            samples=6,
            scheduler="asha",
            reduction_factor=2,
            grace_period=1,
            objective="0.5*AP+0.5*HOTA",
        ),
        space={"tracker.match_threshold": Range(0.3, 0.99)},
    )
    tracker_sweep.run(asked, tmp_path / "sweep")
    report = report_in(tmp_path / "sweep")
    rows = run_page.sweep_rows(report)
    # All tie on the first video, and a tie is not stopped.
    assert {row.stopped for row in rows} == {"2 videos", None}
    best = report.trials[report.best]
    assert best.budget == report.budget == 4
    assert best.value == pytest.approx((best.metrics["AP"] + best.metrics["HOTA"]) / 2)
    assert "stopped after 2 videos" in (tmp_path / "sweep" / layout.PAGE).read_text()


def test_held_out_scores_use_on_each_fold_what_was_best_on_the_others(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, [None])
    found = tracker_sweep.run(
        wanted(evaluated, {"match_threshold": [0.5, 0.98]}, objective="HOTA"), tmp_path / "sweep"
    )
    held_out = found.extra["held_out"]
    assert [fold["values"] for fold in held_out["folds"]] == [{"match_threshold": 0.5}] * 2
    # The same choice in every fold: together they are the whole set with the best.
    assert held_out["value"] == pytest.approx(found.extra["best"]["value"])
    assert held_out["base"] == pytest.approx(found.extra["base"]["value"])
    low, high = held_out["difference"]["interval"]
    assert low <= held_out["difference"]["value"] <= high
    report = report_in(tmp_path / "sweep")
    assert report.held_out is not None
    assert report.held_out.difference.interval == [low, high]
    assert f"from {100 * low:+.1f} to {100 * high:+.1f}" in run_page.held_out_sentence(report)


def test_a_sweep_that_cannot_be_is_refused_before_it_starts(
    evaluated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    low = dataclasses.replace(BASE, score_threshold=0.02)
    with pytest.raises(PipelineError, match=r"score_threshold is 0\.02.*above 0\.05"):
        tracker_sweep.run(dataclasses.replace(wanted(evaluated, {"tau": [0.2]}), base=low), out)
    with pytest.raises(ValueError, match="no metric 'XY'"):
        tracker_sweep.run(wanted(evaluated, {"tau": [0.2]}, objective="XY"), out)
    ranges = dataclasses.replace(wanted(evaluated, {}), space={"tracker.tau": Range(0, 1)})
    with pytest.raises(ValueError, match="has a range"):
        tracker_sweep.run(ranges, out)
    assert not out.exists()


def test_what_asks_for_less_than_was_stored_is_left_out_with_the_reason(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    here(monkeypatch, [None])
    found = tracker_sweep.run(
        wanted(evaluated, {"score_threshold": [0.02, 0.2]}), tmp_path / "sweep"
    )
    assert found.extra["failed"] == 1
    report = report_in(tmp_path / "sweep")
    told = (
        "1 of 3 configurations were left out; the first, tracker.score_threshold=0.02: "
        "tracker.score_threshold=0.02 lies below the score floor of 0.05, and detections below it "
        "were not stored; evaluate again with --set detect.score_floor=0.02 to sweep it."
    )
    assert report.failed[0].reason in told
    assert report.notes == [told]
    assert f"{told} All are listed in {tmp_path}/sweep/report.json" in caplog.messages
    assert told in html.unescape((tmp_path / "sweep" / layout.PAGE).read_text())


@pytest.mark.parametrize("folds", [0, 2, 3])
def test_why_there_is_no_held_out_score_is_told(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, folds: int
) -> None:
    here(monkeypatch, [None])
    asked = wanted(evaluated, {"match_threshold": [0.5]}, folds=folds)
    found = tracker_sweep.run(asked, tmp_path / "sweep")
    assert (found.extra["held_out"] is None) == (folds != 2)
    told = "There is no held-out score: 3 folds need 6 videos, there are 4; --folds 2 would do."
    notes = [told] if folds == 3 else []
    assert report_in(tmp_path / "sweep").notes == notes
    assert [m for m in caplog.messages if "held-out" in m] == notes
    assert (told in (tmp_path / "sweep" / layout.PAGE).read_text()) == (folds == 3)


def test_a_field_without_effect_is_told_before_the_sweep_and_in_its_page(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    told = "tracker.tau has no effect: it needs tracker.weighting paper, which is momentum here."
    asked = wanted(evaluated, {"tau": [0.2, 1.0], "match_threshold": [0.5]})
    asked = dataclasses.replace(asked, base=TrackerConfig.robust())
    monkeypatch.setattr(tuning, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        tracker_sweep.run(asked, tmp_path / "sweep")
    assert told in caplog.messages
    here(monkeypatch, [None])
    tracker_sweep.run(asked, tmp_path / "sweep")
    assert report_in(tmp_path / "sweep").notes == [told]
    assert told in (tmp_path / "sweep" / layout.PAGE).read_text()


def test_stored_frames_are_scored_as_the_tracker_sees_them(evaluated: Path) -> None:
    source = stored.read(evaluated / layout.DETECTIONS)
    assert source.has_truth
    assert [v.video_id for v in source.videos] == [1, 2, 3]
    assert [len(list(source.frames(v))) for v in source.videos] == [6, 3, 5]
