"""jobs.score prints what the official evaluator says, and refuses what it cannot read."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from jobs import score
from tests.idol.analysis.test_clips import cut, entry, strip
from tests.idol.analysis.test_score_files import A, dataset, perfect, poor


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    out = {}
    for name, content in (("truth", dataset()), ("good", perfect()), ("poor", poor())):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        out[name] = str(path)
    return out


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    score.main(words)
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def test_the_last_line_is_the_official_numbers(
    shared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case = shared / "reference" / "eval_cases" / "case01_basic"
    out = tmp_path / "metrics.json"
    score.main(
        [
            *("--truth", str(case / "gt.json")),
            *("--results", str(case / "results.json")),
            *("--out", str(out)),
        ]
    )
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = json.loads((case / "expected.json").read_text())["ytvos"]["stats"]
    assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert json.loads(out.read_text()) == line


@pytest.mark.parametrize(
    "name",
    [
        "case14_quirk_short_predictions",
        "case16_quirk_size_mismatch",
        "case07_empty_videos_absent_class",
    ],
)
def test_compat_scores_as_the_official_evaluator(
    shared: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    case = shared / "reference" / "eval_cases" / name
    line = run(
        capsys,
        "--compat",
        "--truth",
        str(case / "gt.json"),
        "--results",
        str(case / "results.json"),
    )
    expected = json.loads((case / "expected.json").read_text())["ytvos"]["stats"]
    assert {key: line[key] for key in expected} == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_scored_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text('{"videos": []')
    with pytest.raises(SystemExit, match=r"truth\.json is not valid JSON"):
        score.main(["--truth", str(tmp_path / "truth.json"), "--results", "x"])
    with pytest.raises(SystemExit, match=r"none\.json does not exist"):
        score.main(["--truth", str(tmp_path / "none.json"), "--results", "x"])


def test_truth_that_is_not_public_is_said(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text(json.dumps({**dataset(), "annotations": None}))
    with pytest.raises(SystemExit, match="the truth of this split is not public"):
        score.main(["--truth", str(tmp_path / "val.json"), "--results", files["good"]])


@pytest.mark.parametrize("option", [[], ["--tracking"], ["--errors"], ["--oracle"]])
def test_truth_without_objects_has_no_metrics_and_is_no_error(
    files: dict[str, str], tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "val.json"
    path.write_text(json.dumps({**dataset(), "annotations": []}))
    score.main(["--truth", str(path), "--results", files["good"], *option])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["AP"] == -1


def test_a_folder_instead_of_a_file_is_said(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is a folder; name the results file in it"):
        score.main(["--truth", files["truth"], "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="is a folder; name the truth file in it"):
        score.main(["--truth", str(tmp_path), "--results", files["good"]])


def test_more_false_tracks_than_true_ones_are_below_zero(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    entries = [e | {"segmentations": [strip(37, 38)] * 4} for e in perfect()]
    (tmp_path / "wrong.json").write_text(json.dumps(entries))
    wrong = str(tmp_path / "wrong.json")
    score.main(["--truth", files["truth"], "--results", wrong, "--tracking", "--bootstrap", "0"])
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["MOTSA", "-100.0"] in rows


def test_the_table_has_all_that_was_asked_for(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    score.main(
        [
            *("--truth", files["truth"], "--results", files["good"], files["poor"]),
            *("--oracle", "1", "2", "--errors", "--html", str(page), "--bootstrap", "50"),
        ]
    )
    captured = capsys.readouterr()
    rows = [line.split() for line in captured.err.splitlines()]
    assert ["good", "poor"] in rows
    assert ["AP", "by", "class"] in rows
    for words in (["clips", "of", "2"], ["frame", "oracle"], ["background"], ["fragmentation"]):
        assert any(row[: len(words)] == words for row in rows)
    assert "good – poor: AP +" in captured.err
    line = json.loads(captured.out.splitlines()[-1])
    assert list(line["oracle"]["clips"]) == ["1", "2"]
    assert 'id="oracles"' in page.read_text()


def test_oracles_without_lengths_take_the_papers(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = run(capsys, "--truth", files["truth"], "--results", files["poor"], "--oracle")
    assert sorted(map(int, line["oracle"]["clips"])) == [1, 3, 5, 10, 20, 30]
    plain = run(capsys, "--truth", files["truth"], "--results", files["poor"])
    assert "oracle" not in plain
    assert "errors" not in plain


def test_intervals_can_be_left_away_and_depend_on_the_seed_alone(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--truth", files["truth"], "--results", files["poor"]]
    first = run(capsys, *words, "--seed", "1")
    assert first["intervals"]["AP"] == run(capsys, *words, "--seed", "1")["intervals"]["AP"]
    assert first["intervals"]["AP"][0] <= first["AP"] <= first["intervals"]["AP"][1]
    assert run(capsys, *words, "--bootstrap", "0")["intervals"] == {}


def test_a_submission_is_checked_and_zipped(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.zip"
    words = ["--submission", files["good"], "--out", str(out), "--truth", files["truth"]]
    line = run(capsys, *words)
    assert (line["entries"], line["videos"], line["missing_videos"]) == (4, 2, [])
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["results.json"]
        assert json.loads(archive.read("results.json")) == perfect()


def test_a_submission_says_what_it_lacks_and_all_that_is_wrong(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad, out = tmp_path / "bad.json", tmp_path / "out.zip"
    bad.write_text(json.dumps(perfect()[:2]))
    score.main(["--submission", str(bad), "--out", str(out), "--truth", files["truth"]])
    assert "1 videos have no results and will score as empty: 2" in capsys.readouterr().err
    out.unlink()
    bad.write_text(json.dumps([entry(float("nan"), A), entry(0.5, A[:3])]))
    with pytest.raises(SystemExit) as error:
        score.main(["--submission", str(bad), "--out", str(out), "--truth", files["truth"]])
    lines = str(error.value).splitlines()
    assert lines[0] == "InvalidResults: 2 problems, nothing was written:"
    assert [line.split(".")[0] for line in lines[1:]] == ["results[0]", "results[1]"]
    assert not out.exists()


def test_clips_can_be_joined_to_a_results_file(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clips, joined = tmp_path / "clips.json", tmp_path / "joined.json"
    clips.write_text(json.dumps(cut(perfect(), 4, 3, 1)))
    words = ["--truth", files["truth"], "--results", str(clips)]
    assert run(capsys, *words, "--join", str(joined)) == {"entries": 4, "out": str(joined)}
    line = run(capsys, "--truth", files["truth"], "--results", str(joined))
    assert line["AP"] == run(capsys, *words)["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "scoring needs --truth"),
        (["--truth", "{truth}"], "scoring needs --truth GT.json and --results"),
        (["--results", "{good}"], "scoring needs --truth"),
        (["--truth", "{truth}", "--results", "{good}", "--oracle", "0"], "from 1, got 0"),
        (["--truth", "{truth}", "--results", "{good}", "--compat", "--errors"], "Leave --compat"),
        (["--truth", "{truth}", "--results", "{good}", "--bootstrap", "-1"], "resamples must be"),
        (["--truth", "{truth}", "--results", "{good}", "--seed", "-1"], "seed must be >= 0"),
        (
            ["--truth", "{truth}", "--results", "{good}", "--html", "no/a.html"],
            "folder no does not",
        ),
        (["--truth", "{truth}", "--results", "{good}", "--out", "no/a.json"], "folder no does not"),
        (["--truth", "{truth}", "--results", "{good}", "--frames", "."], "add --html page.html"),
        (
            [
                "--truth",
                "{truth}",
                "--results",
                "{good}",
                "--frames",
                "no",
                "--html",
                "a.html",
                "--errors",
            ],
            "folder of frames no does not exist",
        ),
        (
            ["--truth", "{good}", "--results", "{truth}"],
            "the top level is a list",
        ),
        (["--truth", "{truth}", "--results", "{truth}"], "results must be a JSON list"),
        (["--submission", "{good}"], "needs --out results.zip"),
        (["--submission", "{good}", "--out", "{good}"], "would replace"),
        (["--submission", "{good}", "--out", "x.zip", "--results", "{good}"], "scores nothing"),
        (["--submission", "{good}", "--out", "no/x.zip"], "folder no does not exist"),
        (["--submission", "none.json", "--out", "x.zip"], r"none\.json does not exist"),
        (["--truth", "{truth}", "--results", "{good}", "--join", "x"], "no clip predictions"),
        (["--results", "{good}", "--join", "x"], "--join needs --truth"),
    ],
)
def test_wrong_flags_are_said(
    files: dict[str, str],
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=message):
        score.main([word.format(**files) for word in words])
    assert sorted(tmp_path.iterdir()) == before


def test_tracking_metrics_are_trackevals_and_can_leave_low_scores_out(
    shared: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str]
) -> None:
    case = shared / "reference" / "eval_cases" / "case01_basic"
    of_case = ("--truth", str(case / "gt.json"), "--results", str(case / "results.json"))
    found = run(capsys, *of_case, "--tracking", "--bootstrap", "0")["tracking"]
    expected = json.loads((case / "expected_trackeval.json").read_text())["cls_comb_cls_av"]
    assert found["class_averaged"]["HOTA"] == pytest.approx(expected["HOTA"]["HOTA"], abs=1e-6)
    assert found["HOTA"] == found["present_averaged"]["HOTA"]
    every = ("--truth", files["truth"], "--results", files["good"], "--tracking")
    assert run(capsys, *every)["tracking"]["HOTA"] == pytest.approx(1.0)
    assert run(capsys, *every, "--min-score", "2")["tracking"]["HOTA"] == 0.0
    with pytest.raises(SystemExit, match="add --tracking"):
        score.main([*every[:4], "--min-score", "0.5"])
