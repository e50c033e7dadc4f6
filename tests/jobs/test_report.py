"""The page about finished outputs, from its command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import report
from pipelines.stages import detect, evaluate
from tests.pipelines import perfect
from tests.pipelines.conftest import make_videos  # noqa: F401  (a fixture)


@pytest.fixture
def outputs(
    make_videos: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """Two evaluations of one set of videos, in folders of one name."""
    monkeypatch.setattr(detect, "run", perfect.run)
    labels, weights = make_videos([3, 2]).write(), perfect.weights(tmp_path / "w.safetensors")
    found = []
    for name, tracker in (("ours", None), ("theirs", "paper")):
        request = evaluate.Request(annotations=labels, checkpoint=weights, tracker=tracker)
        evaluate.run(request, tmp_path / name / "val", log=False)
        found.append(str(tmp_path / name / "val"))
    return found


def test_outputs_of_one_name_are_told_apart(
    outputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    report.main(["--evaluate", *outputs, "--out", str(page)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"page": str(page)}
    data = page.read_text().split('id="viewer-data">')[1].split("</script>")[0]
    assert json.loads(data)["runs"] == [
        {"name": "ours-val", "set": 0},
        {"name": "theirs-val", "set": 0},
    ]
    with pytest.raises(SystemExit, match="is given twice"):
        report.main(["--evaluate", outputs[0], outputs[0], "--out", str(page)])


def test_clips_can_be_left_out(outputs: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    report.main(["--evaluate", outputs[0], "--out", str(page), "--clip-megabytes", "0"])
    assert "Clips of 0 of 2 videos" in page.read_text()
    with pytest.raises(SystemExit, match="must lie between 0 and 500, got -1"):
        report.main(["--evaluate", outputs[0], "--out", str(page), "--clip-megabytes", "-1"])
