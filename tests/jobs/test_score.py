"""jobs.score prints what the official evaluator says, and refuses what it cannot read."""

import json
from pathlib import Path

import pytest

from jobs import score


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


def test_what_cannot_be_scored_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text('{"videos": []')
    with pytest.raises(SystemExit, match=r"truth\.json is not valid JSON"):
        score.main(["--truth", str(tmp_path / "truth.json"), "--results", "x"])
    with pytest.raises(SystemExit, match=r"none\.json does not exist"):
        score.main(["--truth", str(tmp_path / "none.json"), "--results", "x"])
