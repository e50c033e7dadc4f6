"""No job writes over what it reads, over what it does not know, or to an address."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from jobs import (
    check,
    convert,
    demo,
    evaluate,
    export,
    prepare,
    report,
    score,
    submit,
    sweep,
)
from jobs import track as track_job
from jobs import train as train_job
from jobs.options import command, places
from pipelines import cluster
from pipelines.storage import claims, layout, manifest
from tests.idol.analysis.test_score_files import dataset, perfect


@dataclass(frozen=True, kw_only=True)
class Options:
    """One of each."""

    read: tuple[str, ...] = ()
    folder: Path | None = None
    score: Annotated[Path | None, places.SCORES] = None
    results: Annotated[Path | None, places.RESULTS] = None
    page: Annotated[Path | None, places.PAGE] = None
    film: Annotated[Path | None, places.STREAM] = None
    out: Annotated[str | Path | None, places.FOLDER] = None
    log_to: Annotated[Path | None, places.LOG] = None


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, content in (("truth", dataset()), ("good", perfect())):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {name: str(tmp_path / f"{name}.json") for name in ("truth", "good")}


def refused(message: str, **options: object) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        places.check(Options(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", ["--out", "--html", "--join"])
@pytest.mark.parametrize("name", ["truth", "good"])
def test_a_score_never_replaces_its_inputs(files: dict[str, str], flag: str, name: str) -> None:
    before = Path(files[name]).read_bytes()
    words = ["--truth", files["truth"], "--results", files["good"], flag, files[name]]
    with pytest.raises(SystemExit, match=f"{flag} .*{name}.json would replace .*Write elsewhere"):
        score.main(words)
    assert Path(files[name]).read_bytes() == before


def test_the_same_file_by_another_name_is_an_input_too(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_text("{}")
    (tmp_path / "link.json").symlink_to(source)
    os.link(source, tmp_path / "hard.json")
    for name in ("link.json", "hard.json", "../" + tmp_path.name + "/a.json"):
        refused("would replace", read=(str(source),), score=tmp_path / name)


@pytest.mark.parametrize(
    ("option", "content"),
    [
        ("score", b'{"videos": []}'),
        ("score", b"[]"),
        ("results", b'{"AP": 0.5}'),
        ("results", b'[{"video_id": 1, "category_id": 1}]'),
        ("page", b"<!doctype html>\n<title>mine</title>"),
        ("page", b"\xff\xd8\xff"),
    ],
)
def test_a_file_of_another_kind_is_not_replaced(
    tmp_path: Path, option: str, content: bytes
) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    refused("exists and is not .* remove it yourself", **{option: path})
    assert path.read_bytes() == content


def test_what_a_job_wrote_it_replaces(files: dict[str, str], tmp_path: Path) -> None:
    words = ["--truth", files["truth"], "--results", files["good"], "--bootstrap", "0"]
    words += ["--html", str(tmp_path / "a.html"), "--out", str(tmp_path / "a.json")]
    zipped = ["--submission", files["good"], "--out", str(tmp_path / "a.zip")]
    for _ in range(2):
        score.main(words)
        score.main(zipped)
    (tmp_path / "empty").touch()
    places.check(Options(page=tmp_path / "empty"))
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("notes.txt", "mine")
    with pytest.raises(SystemExit, match=r"a\.zip exists and is not an output of jobs\.score"):
        score.main(zipped)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    refused("exists and is not", score=Path("/dev/null"))
    refused("is a folder; name a file in it", page=tmp_path)
    refused("name one file", page=tmp_path / "a", score=tmp_path / "a")


def test_a_folder_that_is_missing_or_read_only_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(r"folder .*nodir does not exist, so --page .*x\.html", page=tmp_path / "nodir/x.html")
    assert not (tmp_path / "nodir").exists()

    def refuse(**options: object) -> None:
        raise OSError(30, "Read-only file system", "/hidden/.tmp")

    monkeypatch.setattr(places.tempfile, "TemporaryFile", refuse)
    refused(r"--page: Read-only file system: '.*x\.html'", page=tmp_path / "x.html")


def test_the_files_of_a_finished_output_are_not_replaced_one_by_one(tmp_path: Path) -> None:
    claims.prepare_output(tmp_path, layout.EVALUATE, {}, "h").finish()
    page = tmp_path / layout.PAGE
    page.write_text('<meta name="generator" content="idol-vis">')
    refused("a file of the output in", page=page)
    places.check(Options(page=tmp_path / "another.html"))


def test_a_stage_is_not_written_over_what_it_reads(tmp_path: Path) -> None:
    claims.prepare_output(tmp_path, layout.EVALUATE, {}, "h").finish()
    words = ["--evaluation", str(tmp_path), "--out", str(tmp_path), "--overwrite"]
    with pytest.raises(SystemExit, match=r"--out .* would replace"):
        sweep.main(words)
    assert (tmp_path / manifest.MANIFEST).exists()
    best = tmp_path / "best.json"
    best.write_text("{}")
    refused("would replace .*best.json", out=tmp_path, read=(str(best),))
    (tmp_path / "mine.json").write_text("{}")
    places.check(Options(out=tmp_path, read=(str(tmp_path / "mine.json"),)))


def test_a_stream_is_not_written_over_itself(tmp_path: Path) -> None:
    film = tmp_path / "annotated.mp4"
    film.write_bytes(b"mine")
    with pytest.raises(SystemExit, match="would replace"):
        track_job.main([str(film), "--weights", "shipped", "--out", str(tmp_path), "--overwrite"])
    assert film.read_bytes() == b"mine"
    refused("annotated.mp4 exists and is not a film", film=tmp_path)


@pytest.mark.parametrize("address", ["s3://b/x", "gs://b/x", "file://tmp/x", "abfs://c@a/x"])
def test_a_path_that_is_an_address_is_refused(address: str) -> None:
    refused(f"--folder {address} is an address", folder=Path(address))


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (train_job, ["--pairs", "p", "--out", "o", "--log-to", "s3://b/x"]),
        (
            evaluate,
            ["--annotations", "a", "--checkpoint", "c", "--out", "o", "--log-to", "s3://b/x"],
        ),
        (score, ["--truth", "t", "--results", "r", "--frames", "s3://b/x"]),
        (track_job, ["v.mp4", "--weights", "shipped", "--out", "s3://b/x"]),
        (export, ["--weights", "shipped", "--out", "s3://b/x"]),
        (demo, ["--out", "s3://b/x"]),
        (submit, ["--working-dir", "s3://b/x", "--", "true"]),
    ],
)
def test_every_job_refuses_an_address_where_it_wants_a_path(
    job: object, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="s3://b/x is an address"):
        job.main(words)  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_every_path_option_that_is_written_says_its_kind() -> None:
    jobs = [prepare.Prepare, train_job.Train, evaluate.Evaluate, sweep.Sweep, report.Report]
    for options in (*jobs, check.Check, convert.Convert, track_job.Track, export.Export, demo.Demo):
        hints = command.places.get_type_hints(options, include_extras=True)
        for hint in (hints[name] for name in ("out", "log_to") if name in hints):
            assert any(isinstance(one, places.Kind) for one in hint.__metadata__), options


def test_a_log_may_lie_beside_what_is_written_and_read(tmp_path: Path) -> None:
    best = tmp_path / "best.json"
    best.write_text("{}")
    places.check(Options(log_to=tmp_path, out=tmp_path / "a", read=(str(best),)))
    places.check(Options(log_to=tmp_path, out=tmp_path))


def test_a_submitted_job_refuses_to_write_to_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    places.check(Options(out=Path("runs/x"), log_to=Path("logs")))
    monkeypatch.setenv(cluster._SUBMITTED, "{}")
    monkeypatch.setenv(cluster.SUBMITTED_FROM, "/home/me/project")
    places.check(Options(out=tmp_path / "x", log_to=tmp_path, read=("recipe.json",)))
    place = "/home/me/project/runs/x, or an address such as s3://bucket/x"
    refused(f"--out runs/x is relative, .* such as {place}", out="runs/x")
    refused("--log-to logs is relative", log_to=Path("logs"))
    refused(r"--page \.\./page.html .* such as /home/me/page.html,", page=Path("../page.html"))
    monkeypatch.delenv(cluster.SUBMITTED_FROM)
    refused("such as /shared/runs/x", out="runs/x")
