"""report.json of an evaluation: the keys that readers know, and the same report when read back."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipelines.errors import ManifestError
from pipelines.storage import claims, layout
from pipelines.storage.reports import CategoryMetrics, EvaluationReport, Selection, VideoMetrics

STATS = {"AP": 0.5, "AP50": 0.75}
REPORT = EvaluationReport(
    videos=2,
    frames=9,
    sources=["val.json"],
    rejects=[{"video_id": 7, "path": "7/0.jpg", "reason": "gone"}],
    config={"tracker": {"tau": 0.5}},
    selection=Selection(annotations="/val.json", frames=None, videos=[1, 2], stride=2,
                        input_hash="ab"),
    metrics=STATS,
    frame_oracle={"AP": 0.625},
    upper_bound={"AP": 0.75},
    per_category=[CategoryMetrics(category_id=3, name="cat", stats=STATS)],
    per_video=[VideoMetrics(video_id=1, name="a", stats=STATS, tracks=4, truth=3, switches=2)],
    missing_videos=[7],
)  # fmt: skip
WITHOUT_TRUTH = dataclasses.replace(
    REPORT, metrics={}, frame_oracle={}, upper_bound={}, per_category=[], per_video=[],
    missing_videos=[],
)  # fmt: skip


def finished(folder: Path, report: EvaluationReport) -> Path:
    output = claims.prepare_output(folder, layout.EVALUATE, {}, "")
    report.write(folder)
    output.finish(rows=0)
    return folder


@pytest.mark.parametrize("report", [REPORT, WITHOUT_TRUTH])
def test_a_report_is_read_as_it_was_written(report: EvaluationReport, tmp_path: Path) -> None:
    assert EvaluationReport.read(finished(tmp_path / "out", report)) == report


def test_metrics_stand_beside_the_other_fields_of_their_row(tmp_path: Path) -> None:
    written = json.loads((finished(tmp_path / "out", REPORT) / layout.REPORT).read_text())
    assert written["per_category"] == [{"category_id": 3, "name": "cat", **STATS}]
    assert written["per_video"] == [
        {"video_id": 1, "name": "a", "tracks": 4, "truth": 3, "switches": 2, **STATS}
    ]
    assert written["selection"] == {
        "annotations": "/val.json", "frames": None, "videos": [1, 2], "stride": 2,
        "input_hash": "ab",
    }  # fmt: skip


def test_without_truth_there_are_no_keys_of_truth(tmp_path: Path) -> None:
    written = json.loads((finished(tmp_path / "out", WITHOUT_TRUTH) / layout.REPORT).read_text())
    assert set(REPORT.to_dict()) - set(written) == {
        "frame_oracle", "upper_bound", "per_category", "per_video", "missing_videos"
    }  # fmt: skip
    assert written["metrics"] == {}
    assert WITHOUT_TRUTH.headline() == {"AP_frame_oracle": None, "AP_upper_bound": None}


def test_the_numbers_of_a_report_have_one_name_each() -> None:
    assert REPORT.flat() == {
        **STATS,
        "frame_oracle/AP": 0.625,
        "upper_bound/AP": 0.75,
        "category/cat/AP": 0.5,
        "videos": 2,
        "rejects": 1,
    }
    best = {"AP_frame_oracle": 0.625, "AP_upper_bound": 0.75}
    assert REPORT.headline() == {**STATS, **best}


def test_an_evaluation_that_is_not_finished_has_no_report(tmp_path: Path) -> None:
    claims.prepare_output(tmp_path, layout.EVALUATE, {}, "")
    REPORT.write(tmp_path)
    with pytest.raises(ManifestError):
        EvaluationReport.read(tmp_path)
