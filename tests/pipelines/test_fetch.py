"""What a job has made in object storage is brought here; what cannot be is listed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import fs
from ray.job_submission import JobStatus

from pipelines import fetch
from pipelines.errors import PipelineError
from pipelines.storage import paths

RESULT = {
    "AP": 0.4,
    "out": "s3://b/run",
    "sets": {
        "val": {"report": "s3://b/run/val/report.html"},
        "test": {"report": "s3://b/run/test/report.html"},
    },
    "log": ["/data/run/mlflow.db"],
}


class Client:
    """A job server with one finished job."""

    def __init__(self, log: str) -> None:
        self.log = log

    def get_job_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            submission_id=name, status=JobStatus.SUCCEEDED, entrypoint="x", start_time=1,
            end_time=2, driver_exit_code=0, message="",
        )  # fmt: skip

    def get_job_logs(self, name: str) -> str:
        return self.log


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this disk that stands in for s3://b."""
    folder = tmp_path / "bucket"
    for name in ("val", "test"):
        (folder / "run" / name).mkdir(parents=True)
        (folder / "run" / name / "report.html").write_text(name)
    whole = paths.native

    def native(path: object) -> tuple[fs.FileSystem, str]:
        if not str(path).startswith("s3://b"):
            return whole(path)  # type: ignore[arg-type]
        return fs.LocalFileSystem(), str(path).replace("s3://b", str(folder))

    monkeypatch.setattr(paths, "native", native)
    return folder


def test_log_result_and_files_are_brought_and_the_rest_is_listed(
    bucket: Path, tmp_path: Path
) -> None:
    log = f"Working\n{json.dumps(RESULT)}\n"
    for _ in range(2):  # again is the same
        got = fetch.fetch(Client(log), "idol-1", tmp_path / "here")
        assert got.folder == tmp_path / "here" / "idol-1"
        assert (got.folder / "log.txt").read_text() == log
        assert json.loads((got.folder / "result.json").read_text()) == RESULT
        names = sorted(path.relative_to(got.folder).as_posix() for path in got.files)
        assert names == ["log.txt", "result.json", "run/test/report.html", "run/val/report.html"]
        assert (got.folder / "run" / "val" / "report.html").read_text() == "val"
        assert dict(got.kept) == {
            "s3://b/run": "a folder",
            "/data/run/mlflow.db": "a path of the cluster; only addresses can be fetched",
        }


def test_a_file_that_is_gone_and_other_sites_are_listed(bucket: Path, tmp_path: Path) -> None:
    result = {"a": "s3://b/gone.json", "c": "http://u:hush@host/x"}
    got = fetch.fetch(Client(json.dumps(result)), "idol-1", tmp_path)
    reasons = {
        "s3://b/gone.json": "it is not there",
        "http://host/x": "it is not in object storage",
    }
    assert dict(got.kept) == reasons


def test_no_name_in_a_result_leads_out_of_the_folder(bucket: Path, tmp_path: Path) -> None:
    (bucket.parent / "secret").write_text("x")
    result = {"a": "s3://b/run/../../secret", "b": "s3://b/run/val/report.html"}
    with pytest.raises(PipelineError, match="leads out of"):
        fetch.fetch(Client(json.dumps(result)), "idol-1", tmp_path / "here")


def test_a_job_without_a_result_gives_its_log(tmp_path: Path) -> None:
    got = fetch.fetch(Client("no\n"), "idol-1", tmp_path)
    assert [path.name for path in got.files] == ["log.txt"]
