"""The experiment log writes what it is given, to its own file or where it is told to."""

import logging
import sqlite3
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.report import experiment_log


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_nested_configurations_become_dotted_names():
    nested = {"tracker": {"tau": 0.5, "deep": {"x": [1, 2]}}, "name": "tiny"}
    assert experiment_log.flatten(nested) == {
        "tracker.tau": 0.5,
        "tracker.deep.x": [1, 2],
        "name": "tiny",
    }


def test_a_run_keeps_parameters_curves_files_and_its_child(tmp_path: Path):
    note = tmp_path / "note.txt"
    note.write_text("hello")
    with experiment_log.run(tmp_path, "parent", {"tracker": {"tau": 0.5}}) as log:
        log.curve((step, {"loss": 10.0 - step}) for step in range(600))
        log.metrics({"AP": 0.25, "undefined": float("nan"), "AP/a b": 1.0}, step=600)
        log.artifacts(note)
        log.child("child", {"tau": 1}, {"AP": 0.5})
    assert (tmp_path / "mlflow.db").is_file()
    found = {r.info.run_name: r for r in experiment_log.runs(tmp_path)}
    parent = found["parent"]
    assert parent.data.params == {"tracker.tau": "0.5"}
    assert parent.data.metrics == {"loss": -589.0, "AP": 0.25, "AP/a b": 1.0}
    assert len(log.client.get_metric_history(log.run_id, "loss")) == 600
    assert [a.path for a in log.client.list_artifacts(log.run_id)] == ["note.txt"]
    assert parent.info.status == "FINISHED"
    assert found["child"].data.tags["mlflow.parentRunId"] == log.run_id
    child = found["child"]
    assert (child.data.params, child.data.metrics) == ({"tau": "1"}, {"AP": 0.5})
    assert child.info.status == "FINISHED"


def test_a_run_that_raises_is_marked_failed_and_the_error_passes(tmp_path: Path):
    with pytest.raises(KeyError), experiment_log.run(tmp_path, "broken", {}):
        raise KeyError("x")
    assert [r.info.status for r in experiment_log.runs(tmp_path)] == ["FAILED"]


def test_the_environment_chooses_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    with experiment_log.run(tmp_path / "out", "x", {}) as log:
        pass
    assert log.uri == elsewhere
    assert not (tmp_path / "out" / "mlflow.db").exists()


def test_every_name_is_logged_under_an_accepted_name_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    names = ["/m/01g317", "car/", "car", "a//b", "..", ".", "", "x" * 300, "x" * 301, "car:red"]
    names += ["car_red", "a/../b", " ", "\udc80", "\n", "猫", "c" * 250]
    values = {f"category/{name}/AP": float(i) for i, name in enumerate(names)}
    with experiment_log.run(tmp_path, "r", values) as log:
        log.metrics(values)
    assert caplog.messages == []
    (run,) = experiment_log.runs(tmp_path)
    assert sorted(run.data.metrics.values()) == sorted(values.values())
    assert len(run.data.params) == len(names)
    assert run.data.metrics["category/car/AP"] == 2.0


def test_a_deleted_experiment_is_said_before_the_work(tmp_path: Path):
    with experiment_log.run(tmp_path, "r", {}) as log:
        pass
    log.client.delete_experiment(log.experiment_id)
    with (
        pytest.raises(PipelineError, match=r"was deleted\. Restore it with .*--log-to FOLDER"),
        experiment_log.run(tmp_path, "r", {}),
    ):
        pytest.fail("the work began")
    log.client.restore_experiment(log.experiment_id)
    with experiment_log.run(tmp_path, "r", {}):
        pass


@pytest.mark.parametrize("uri", ["sqlite:///{out}/notes.txt", "sqlite:////proc/no/m.db", "ftp://x"])
def test_a_log_that_cannot_be_opened_is_one_line_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
):
    (tmp_path / "notes.txt").write_text("no database\n" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(out=tmp_path))
    with (
        pytest.raises(PipelineError, match="cannot be opened") as caught,
        experiment_log.run(tmp_path, "r", {}),
    ):
        pytest.fail("the work began")
    assert "\n" not in str(caught.value)


def test_a_log_that_fails_later_is_told_once_and_the_work_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING), experiment_log.run(tmp_path, "r", {}) as log:
        with sqlite3.connect(tmp_path / "mlflow.db") as file:
            file.execute("DROP TABLE metrics")
        log.metrics({"AP": 0.5})
        log.artifacts(tmp_path / "none.txt")
        log.child("c", {}, {"AP": 0.5})
    (told,) = [record for record in caplog.records if record.name == experiment_log.__name__]
    assert "is not logged any further, the work goes on" in told.getMessage()
