"""The experiment log writes what it is given, to its own file or where it is told to."""

from pathlib import Path

import pytest

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
        log.metrics({"AP": 0.25, "undefined": float("nan"), "AP/a:b": 1.0}, step=600)
        log.artifacts(note)
        with experiment_log.run(tmp_path, "child", {}, parent=log) as child:
            pass
    assert (tmp_path / "mlflow.db").is_file()
    found = {r.info.run_name: r for r in experiment_log.runs(tmp_path)}
    parent = found["parent"]
    assert parent.data.params == {"tracker.tau": "0.5"}
    assert parent.data.metrics == {"loss": -589.0, "AP": 0.25, "AP/a_b": 1.0}
    assert len(log.client.get_metric_history(log.run_id, "loss")) == 600
    assert [a.path for a in log.client.list_artifacts(log.run_id)] == ["note.txt"]
    assert parent.info.status == "FINISHED"
    assert found["child"].data.tags["mlflow.parentRunId"] == log.run_id
    assert child.run_id == found["child"].info.run_id


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
