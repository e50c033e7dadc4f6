"""The whole walk on synthetic videos, from nothing to a page, twice to the same bytes."""

import json
from pathlib import Path

import pytest

from idol.ytvis import results
from jobs import demo, report
from pipelines.report import experiment_log
from pipelines.storage import manifest

pytestmark = pytest.mark.ray

SMALL = (
    "--train-videos", "2", "--validation-videos", "2", "--workers", "0",
    "--set", "train.steps=4", "--set", "train.report_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def walked(ray_local, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        # As a user names it, relative: workers have another working directory.
        patch.chdir(root)
        demo.main(["--out", "first", *SMALL])
    return root / "first"


def test_every_stage_is_finished_and_the_page_shows_what_it_found(walked, capsys):
    out = walked
    for folder in ("pairs", "train", "evaluate/easy", "evaluate/crowded", "sweep"):
        assert manifest.read(out / folder).stage
    page = (out / "report.html").read_text()
    for heading in ("easy", "crowded", "loss", "memory_length", "python -m jobs.demo"):
        assert heading in page
    assert page.count('id="clip-') == 4 * 3  # film, masks, truth
    demo.main(["--out", str(out), *SMALL])  # again: nothing is redone
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(line["sets"]) == {"easy", "crowded"}
    assert 0.0 <= line["sets"]["easy"]["AP"] <= line["sets"]["easy"]["AP50"] <= 1.0
    assert line["page"] == str(out / "report.html")


@pytest.mark.slow
def test_equal_walks_give_equal_bytes(walked, tmp_path):
    first, second = walked, tmp_path / "second"
    demo.main(["--out", str(second), *SMALL])
    for dial in ("easy", "crowded"):
        ours = (first / "evaluate" / dial / "results.json").read_bytes()
        assert ours == (second / "evaluate" / dial / "results.json").read_bytes()
        assert results.read(first / "evaluate" / dial / "results.json")


def test_losses_and_metrics_are_in_mlflow(walked):
    runs = experiment_log.runs(walked)
    named = {run.info.run_name: run for run in runs}
    assert {"train train", "evaluate easy", "evaluate crowded"} <= set(named)
    assert named["train train"].data.metrics["loss"] > 0
    assert named["train train"].data.params["model.num_queries"] == "40"
    assert "AP" in named["evaluate easy"].data.metrics


def test_one_page_is_made_from_any_finished_parts(walked, tmp_path, capsys):
    out = walked
    report.main(["--evaluate", str(out / "evaluate/easy"), "--out", str(tmp_path / "page.html")])
    assert "easy" in (tmp_path / "page.html").read_text()
    assert json.loads(capsys.readouterr().out)["page"] == str(tmp_path / "page.html")
    words = ["--evaluate", str(out / "evaluate/easy"), "--out", str(tmp_path / "small.html")]
    report.main([*words, "--clip-megabytes", "0"])
    assert "Clips of 0 of 2 videos" in (tmp_path / "small.html").read_text()
    with pytest.raises(SystemExit, match="between 0 and 500, got -1"):
        report.main([*words, "--clip-megabytes", "-1"])
    with pytest.raises(SystemExit, match=r"jobs\.evaluate"):
        report.main(["--evaluate", str(tmp_path / "no"), "--out", str(tmp_path / "page.html")])


def test_a_bad_number_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(SystemExit, match="Did you mean 'steps'"):
        demo.main(["--out", str(tmp_path / "demo"), "--set", "train.step=3"])
    assert not (tmp_path / "demo").exists()
