"""How a job ends: a short line that names the file with the rest, and a table."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import summary


def stats(value: float) -> dict[str, float]:
    return {name: value for name in ("AP", "AP50", "AP75", "APs", "AR1", "AR10", "AR100")}


def test_a_short_line_is_the_object_itself() -> None:
    line = {"b": [1, {"c": 2}], "a": 0.5, summary.WHOLE: "x.json"}
    assert summary.last_line(line, "score") == '{"a": 0.5, "b": [1, {"c": 2}]}'


def test_a_long_line_keeps_its_scores_and_names_the_file_with_the_rest() -> None:
    deep = {str(n): stats(0.1) for n in range(40)}
    line = {**stats(0.5), "tracking": {"HOTA": 0.4, "classes": deep}, "errors": {"worst": deep}}
    text = summary.last_line({**line, summary.WHOLE: "runs/whole.json"}, "score")
    assert len(text) < 4000
    short = json.loads(text)
    assert short["whole"] == "runs/whole.json"
    assert {name: short[name] for name in stats(0.5)} == stats(0.5)
    assert short["tracking"]["HOTA"] == 0.4


def test_without_a_file_one_is_written_that_holds_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary.tempfile, "gettempdir", lambda: str(tmp_path))
    line = {"AP": 0.5, "rows": list(range(2000))}
    short = json.loads(summary.last_line(line, "score"))
    assert set(short) == {"AP", "whole"}
    assert json.loads(Path(short["whole"]).read_text()) == line
    assert json.loads(summary.last_line(line, "score")) == short
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("count", [3, 30])
def test_many_evaluations_keep_their_headlines_as_long_as_they_fit(count: int) -> None:
    sets: dict[str, Any] = {
        f"set{n}": {**stats(n / 100), "out": f"runs/set{n}", "page": "p" * 60} for n in range(count)
    }
    text = summary.last_line({"sets": sets, summary.WHOLE: "s.json"}, "evaluate")
    assert len(text) <= summary.MOST_BYTES
    short = json.loads(text)
    assert short["sets"]["set2"]["AP"] == 0.02
    assert ("page" in short["sets"]["set2"]) == (count == 3)


def test_the_table_has_scores_in_percent_and_facts_below() -> None:
    line = {"AP": 0.4583, "AP50": 0.7178, "AR1": -1.0, "APs": 0.3, "rejects": 0, "seconds": 11.789}
    assert summary.table({**line, "page": "r.html", "per_class": {}}).splitlines() == [
        "      AP    AP50     AR1",
        "    45.8    71.8       –",
        "rejects  0",
        "seconds  11.79",
        "page     r.html",
    ]


def test_the_table_of_several_evaluations_has_a_row_for_each() -> None:
    inner = {"sets": {"val": {"AP": 0.5, "out": "a"}, "test": {"AP": 0.25, "out": "b"}}}
    text = summary.table({"checkpoints": {"ours": inner, "theirs": {"AP": 0.1}}, "page": "c.html"})
    assert text.splitlines() == [
        "                AP",
        "ours, val     50.0",
        "ours, test    25.0",
        "theirs        10.0",
        "page  c.html",
    ]
