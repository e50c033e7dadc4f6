"""Results files side by side: the evaluator's numbers, whoever reads the videos."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from idol.analysis import results_file, score_files
from idol.analysis.results_file import ResultsFile
from idol.analysis.score_files import Analyses
from idol.config import AnalysisConfig
from idol.evaluation import average_precision
from idol.evaluation.tracking_metrics import TrackingOptions
from idol.ytvis import results, truth
from idol.ytvis.index import ResultsIndex
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


def run(files: dict[str, Path], *names: str, **asked: Any) -> score_files.ScoredFiles:
    paths = {name: files[name] for name in names}
    return score_files.run(truth.read(files["truth"]), paths, Analyses(**asked))


def test_scores_are_those_of_the_evaluator(files: dict[str, Path]) -> None:
    found = run(files, "poor")
    official = average_precision.evaluate(files["truth"], files["poor"])
    assert found.files[0].metrics.to_dict() == official.to_dict()
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
    assert found.files[0].metrics.stats["AP"] == pytest.approx(1)
    count = results_file.join(truth.read(files["truth"]), files["clips"], tmp_path / "joined.json",
                       AnalysisConfig())  # fmt: skip
    assert count == len(results.read(tmp_path / "joined.json")) == 4
    assert average_precision.evaluate(files["truth"], tmp_path / "joined.json").stats["AP"] == (
        pytest.approx(1)
    )
    with pytest.raises(ValueError, match="the official evaluator knows no clips"):
        run(files, "clips", compat=True)
    with pytest.raises(ValueError, match="has no clip predictions to join"):
        results_file.join(
            truth.read(files["truth"]), files["good"], tmp_path / "x", AnalysisConfig()
        )


def test_missing_videos_are_loud(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    files["good"].write_text(json.dumps(perfect()[:2]))
    found = run(files, "good")
    assert found.files[0].metrics.missing_videos == (2,)
    assert "1 of 2 videos have no results" in caplog.text


def test_an_error_in_one_of_several_files_names_the_file(files: dict[str, Path]) -> None:
    files["poor"].write_text(json.dumps([{**entry(float("nan"), A)}]))
    with pytest.raises(ValueError, match=r"poor\.json: results\[0\]\.score must be finite"):
        run(files, "good", "poor")
    with pytest.raises(ValueError, match=r"poor\.json: results\[0\]\.score must be finite"):
        run(files, "poor")


def test_analyses_need_well_formed_input() -> None:
    with pytest.raises(ValueError, match="--compat scores malformed input"):
        Analyses(compat=True, errors=True)
    with pytest.raises(ValueError, match="clip lengths are whole numbers from 1, got 0"):
        Analyses(oracle=(3, 0))


def test_progress_is_told_for_every_video(files: dict[str, Path]) -> None:
    told: list[tuple[str, int, int]] = []
    score_files.run(
        truth.read(files["truth"]),
        {"good": files["good"]},
        Analyses(),
        progress=lambda *done: told.append(done),
    )
    assert told == [("good", 1, 2), ("good", 2, 2)]


def test_scoring_needs_neither_ray_nor_torch(files: dict[str, Path]) -> None:
    code = (
        "import sys, jobs.score\n"
        f"jobs.score.main(['--truth', {str(files['truth'])!r}, '--results', "
        f"{str(files['poor'])!r}, '--tracking', '--errors', '--oracle', '2'])\n"
        "print([m for m in ('ray', 'pyarrow', 'mlflow', 'torch') if m in sys.modules])"
    )
    root = Path(score_files.__file__).resolve().parents[2]
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
    monkeypatch.setattr(score_files, "_PROCESS_BYTES", 0)

    def found(path: Path, analyses: Analyses, workers: int) -> dict[str, Any]:
        return score_files.run(known, {"poor": path}, analyses, workers=workers).to_dict()

    usual = files["poor"]
    expected = found(usual, analyses, 1)
    for path, workers in ((usual, 2), (unusual, 1), (unusual, 2)):
        assert found(path, analyses, workers) == expected
    plain = found(usual, Analyses(), 1)
    assert found(usual, Analyses(), 2) == plain
    # Large files are read by compiled code, in threads or, with tracking, in processes.
    tracking = Analyses(tracking=TrackingOptions(min_score=0.3))
    counted = found(usual, tracking, 1)
    monkeypatch.setattr(score_files, "_COMPILE_BYTES", 0)
    assert found(usual, tracking, 2) == counted
    for path in (usual, unusual):
        assert found(path, tracking, 1) == counted
        assert found(path, analyses, 1) == expected
        assert found(path, Analyses(), 1) == found(path, Analyses(), 2) == plain


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"score": float("nan")}, r"results\[1\].score must be finite"),
    ({"category_id": 77}, r"results\[1\] has category_id 77"),
    ({"video_id": 77}, r"results\[1\] has video_id 77"),
    ({"segmentations": [None]}, r"results\[1\].segmentations has 1 entries"),
]


def with_a_wrong_entry(path: Path, change: dict[str, Any]) -> dict[str, Path]:
    entries = poor()
    entries[1] = {**entries[1], **change}
    path.write_text(json.dumps(entries))
    return {"broken": path}


@pytest.mark.parametrize(("change", "reason"), WRONG)
def test_an_entry_that_is_wrong_is_named(
    files: dict[str, Path], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    broken = with_a_wrong_entry(tmp_path / "broken.json", change)
    with pytest.raises(ValueError, match=reason):
        score_files.run(truth.read(files["truth"]), broken, Analyses(), workers=1)


@pytest.mark.timeout(60)
def test_an_entry_that_is_wrong_ends_several_processes(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_files, "_PROCESS_BYTES", 0)
    change, reason = WRONG[0]
    broken = with_a_wrong_entry(tmp_path / "broken.json", change)
    with pytest.raises(ValueError, match=reason):
        score_files.run(truth.read(files["truth"]), broken, Analyses(errors=True), workers=2)
    assert not multiprocessing.active_children()


def test_results_travel_to_other_processes(files: dict[str, Path]) -> None:
    known = truth.read(files["truth"])
    index = ResultsIndex(files["poor"])
    results = ResultsFile(files["poor"], tuple(known.categories), index=index)
    sent = pickle.loads(pickle.dumps(results))
    assert sent.of(2) == index.of(2)
    assert sent.path == files["poor"]
