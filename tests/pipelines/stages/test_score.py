"""Scoring results files: names, analyses side by side, and a page that needs nothing else."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from idol.config import AnalysisConfig
from idol.evaluation import average_precision
from idol.evaluation.tracking_metrics import TrackingOptions
from idol.ytvis import results, truth
from pipelines.report import score_page
from pipelines.stages import score
from pipelines.stages.score import Analyses
from tests.idol.analysis.test_clips import SIZE, cut, entry, moving, strip

A, B = moving(4, 0, 0, 10), moving(4, 20, 0, 10)


def dataset() -> dict[str, Any]:
    """Two videos with two objects each, of the classes 1 and 2."""
    return {
        "videos": [
            {
                "id": v,
                "height": SIZE[0],
                "width": SIZE[1],
                "length": 4,
                "file_names": [f"street_{v}/{t}.png" for t in range(4)],
            }
            for v in (1, 2)
        ],
        "categories": [{"id": 1, "name": "<cat>"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 2 * v + g, "video_id": v, "category_id": g + 1, "segmentations": masks}
            for v in (1, 2)
            for g, masks in enumerate((A, B))
        ],
    }


def perfect() -> list[dict[str, Any]]:
    return [
        {**entry(0.9 - g / 10, masks, category_id=g + 1), "video_id": v}
        for v in (1, 2)
        for g, masks in enumerate((A, B))
    ]


def poor() -> list[dict[str, Any]]:
    """One video is perfect; in the other the tracks swap their objects, and a ghost is sure."""
    rows = perfect()[:2]
    rows += [
        {**entry(0.8, A[:2] + B[2:]), "video_id": 2},
        {**entry(0.7, B[:2] + A[2:], category_id=2), "video_id": 2},
        {**entry(0.95, [strip(32, 38)] * 4), "video_id": 2},
    ]
    return rows


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    out = {}
    for name, content in (("truth", dataset()), ("good", perfect()), ("poor", poor())):
        out[name] = tmp_path / f"{name}.json"
        out[name].write_text(json.dumps(content))
    return out


def run(files: dict[str, Path], *names: str, **asked: Any) -> score.Scores:
    paths = {name: files[name] for name in names}
    return score.run(truth.read(files["truth"]), paths, Analyses(**asked))


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/ours/results.json"], ["ours"]),
        (["/x/ours.json", "/x/theirs.json"], ["ours", "theirs"]),
        (["/x/a/val/results.json", "/x/b/val/results.json"], ["a", "b"]),
        (["/x/a/val/results.json", "/x/b/val/results.json", "/x/c.json"], ["a/val", "b/val", "c"]),
        (["/x/a.json", "/x/a.json"], ["a", "a-2"]),
        (["/x/a.b.json", "/x/a.c.json"], ["a.b", "a.c"]),
    ],
)
def test_methods_are_named_by_what_differs(paths: list[str], names: list[str]) -> None:
    assert score.names_of([Path(p) for p in paths]) == names


# ---- scores -------------------------------------------------------------------------------------


def test_scores_are_those_of_the_evaluator(files: dict[str, Path]) -> None:
    found = run(files, "poor")
    official = average_precision.evaluate(files["truth"], files["poor"])
    assert found.methods[0].metrics.to_dict() == official.to_dict()
    written = found.to_dict()
    assert {k: written[k] for k in official.stats} == official.stats
    assert written.keys() - official.stats.keys() == {
        *("per_class", "missing_videos", "num_videos", "intervals")
    }


def test_methods_stand_side_by_side_with_their_difference(files: dict[str, Path]) -> None:
    found = run(files, "good", "poor", oracle=(1, 4), errors=True)
    written = found.to_dict()
    assert list(written["results"]) == ["good", "poor"]
    assert written["AP"] == written["results"]["good"]["AP"] == pytest.approx(1)
    (gap,) = written["differences"]
    assert (gap["first"], gap["second"]) == ("good", "poor")
    assert gap["AP"]["value"] == pytest.approx(1 - written["results"]["poor"]["AP"])
    assert gap["AP"]["better"] > 0.5
    oracle = written["results"]["poor"]["oracle"]
    assert oracle["predicted"]["AP"] == written["results"]["poor"]["AP"]
    assert oracle["clips"]["1"] == oracle["frame"]
    # Classes are swapped with the objects: true identities alone leave wrong classes.
    assert written["results"]["poor"]["errors"]["counts"]["background"] == 1
    assert json.loads(json.dumps(written)) == written


def test_clips_are_joined_before_they_are_scored(files: dict[str, Path], tmp_path: Path) -> None:
    overlapping = cut(perfect(), 4, 3, 1)
    files["clips"] = tmp_path / "clips.json"
    files["clips"].write_text(json.dumps(overlapping))
    found = run(files, "clips", oracle=(1, 2, 3), errors=True)
    assert found.methods[0].metrics.stats["AP"] == pytest.approx(1)
    count = score.join(truth.read(files["truth"]), files["clips"], tmp_path / "joined.json",
                       AnalysisConfig())  # fmt: skip
    assert count == len(results.read(tmp_path / "joined.json")) == 4
    assert average_precision.evaluate(files["truth"], tmp_path / "joined.json").stats["AP"] == (
        pytest.approx(1)
    )
    with pytest.raises(ValueError, match="the official evaluator knows no clips"):
        run(files, "clips", compat=True)
    with pytest.raises(ValueError, match="has no clip predictions to join"):
        score.join(truth.read(files["truth"]), files["good"], tmp_path / "x", AnalysisConfig())


def test_missing_videos_are_loud(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    files["good"].write_text(json.dumps(perfect()[:2]))
    found = run(files, "good")
    assert found.methods[0].metrics.missing_videos == (2,)
    assert "1 of 2 videos have no results" in caplog.text


def test_an_error_in_one_of_several_files_names_the_file(files: dict[str, Path]) -> None:
    files["poor"].write_text(json.dumps([{**entry(float("nan"), A)}]))
    with pytest.raises(ValueError, match=r"poor\.json: results\[0\]\.score must be finite"):
        run(files, "good", "poor")
    with pytest.raises(ValueError, match=r"^results\[0\]\.score must be finite"):
        run(files, "poor")


def test_analyses_need_well_formed_input() -> None:
    with pytest.raises(ValueError, match="--compat scores malformed input"):
        Analyses(compat=True, errors=True)
    with pytest.raises(ValueError, match="clip lengths are whole numbers from 1, got 0"):
        Analyses(oracle=(3, 0))


def test_progress_is_told_for_every_video(files: dict[str, Path]) -> None:
    told: list[tuple[str, int, int]] = []
    score.run(
        truth.read(files["truth"]),
        {"good": files["good"]},
        Analyses(),
        progress=lambda *done: told.append(done),
    )
    assert told == [("good", 1, 2), ("good", 2, 2)]


# ---- the page -----------------------------------------------------------------------------------


def page(files: dict[str, Path], *names: str, frames: Path | None = None, **asked: Any) -> str:
    out = files["truth"].with_name("page.html")
    score.write_page(
        out,
        run(files, *names, **asked),
        {name: files[name] for name in names},
        files["truth"],
        AnalysisConfig(),
        frames=frames,
        command="python -m jobs.score <mine>",
    )
    return out.read_text()


def test_the_page_shows_what_was_asked_for_and_loads_nothing(files: dict[str, Path]) -> None:
    text = page(files, "good", "poor", oracle=(1, 4), errors=True)
    assert "<h1>Scores of good and poor</h1>" in text
    for section in ("scores", "curves", "classes", "oracles", "errors", "worst"):
        assert f'id="{section}"' in text
        assert f'href="#{section}"' in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert "&lt;cat&gt;" in text
    assert "<cat>" not in text
    assert "2 street_2" in text
    assert "street_2/2.png" in text  # where the tracks have swapped
    assert "frame oracle" in text


def test_the_page_leaves_out_what_was_not_asked_for(files: dict[str, Path]) -> None:
    text = page(files, "good")
    for section in ("oracles", "errors", "worst", "pictures"):
        assert f'id="{section}"' not in text


def test_tracking_metrics_stand_below_the_scores_shares_in_percent(files: dict[str, Path]) -> None:
    (method,) = run(files, "good").methods
    method = dataclasses.replace(method, tracking={"HOTA": 0.512, "IDSW": 7})
    text = score_page.render(
        score_page.ScorePage(title="t", methods=[method], categories={1: "cat", 2: "dog"})
    )
    assert "<td>HOTA</td><td>51.2</td>" in text
    assert "<td>IDSW</td><td>7</td>" in text


def test_the_worst_instances_link_to_their_pictures(files: dict[str, Path]) -> None:
    for v in (1, 2):
        (files["truth"].parent / f"street_{v}").mkdir()
        for t in range(4):
            image = np.full((*SIZE, 3), 90, np.uint8)
            cv2.imwrite(str(files["truth"].parent / f"street_{v}" / f"{t}.png"), image)
    text = page(files, "poor", errors=True)
    links = re.findall(r'href="#(p-0-\d+)"', text)
    assert sorted(links) == ["p-0-4", "p-0-5"]
    assert all(f'id="{link}"' in text for link in links)
    assert text.count("data:image/jpeg") == 2 * 2 * 4  # instances, found and truth, frames


def test_frames_that_cannot_be_read_are_said(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = page(files, "poor", frames=tmp_path / "nowhere", errors=True)
    assert 'id="pictures"' not in text
    assert "no frame that the truth names could be read" in caplog.text


def test_scoring_needs_neither_ray_nor_torch(files: dict[str, Path]) -> None:
    code = (
        "import sys, jobs.score\n"
        f"jobs.score.main(['--truth', {str(files['truth'])!r}, '--results', "
        f"{str(files['poor'])!r}, '--tracking', '--errors', '--oracle', '2'])\n"
        "print([m for m in ('ray', 'pyarrow', 'mlflow', 'torch') if m in sys.modules])"
    )
    root = Path(score.__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_processes_and_ways_of_reading_change_nothing(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = truth.read(files["truth"])
    analyses = Analyses(oracle=(1, 2), errors=True, tracking=TrackingOptions())
    # An object beside the masks is read as a whole file.
    unusual = tmp_path / "unusual.json"
    unusual.write_text(json.dumps([{**entry, "video": {"name": "x"}} for entry in poor()]))
    expected = score.run(known, {"poor": files["poor"]}, analyses, workers=1).to_dict()
    for path, workers in ((files["poor"], 2), (unusual, 1), (unusual, 2)):
        assert score.run(known, {"poor": path}, analyses, workers=workers).to_dict() == expected
    monkeypatch.setattr(score, "_FORK_BYTES", 0)
    plain = score.run(known, {"poor": files["poor"]}, Analyses(), workers=1).to_dict()
    assert score.run(known, {"poor": files["poor"]}, Analyses(), workers=2).to_dict() == plain
    # Large files are read by compiled code, in threads or, with tracking, in processes.
    pytest.importorskip("numba")
    tracking = Analyses(tracking=TrackingOptions(min_score=0.3))
    counted = score.run(known, {"poor": files["poor"]}, tracking, workers=1).to_dict()
    monkeypatch.setattr(average_precision, "LARGE", 0)
    for path, workers in itertools.product((files["poor"], unusual), (1, 2)):
        assert score.run(known, {"poor": path}, Analyses(), workers=workers).to_dict() == plain
        assert score.run(known, {"poor": path}, tracking, workers=workers).to_dict() == counted
        assert score.run(known, {"poor": path}, analyses, workers=workers).to_dict() == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_an_entry_that_is_wrong_is_named_whoever_reads_it(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(score, "_FORK_BYTES", 0)
    known = truth.read(files["truth"])
    path = tmp_path / "broken.json"
    for change, reason in (
        ({"score": float("nan")}, r"results\[1\].score must be finite"),
        ({"category_id": 77}, r"results\[1\] has category_id 77"),
        ({"video_id": 77}, r"results\[1\] has video_id 77"),
        ({"segmentations": [None]}, r"results\[1\].segmentations has 1 entries"),
    ):
        entries = poor()
        entries[1] = {**entries[1], **change}
        path.write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=reason):
            score.run(known, {"broken": path}, Analyses(), workers=workers)
