"""The page of scored files: what was asked for, pictures of the worst, and nothing from outside."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from idol.config import AnalysisConfig
from idol.evaluation.tracking_metrics import TrackingOptions
from pipelines.report import score_page
from tests.idol.analysis.test_clips import SIZE, cut
from tests.idol.analysis.test_score_files import files, poor, run

__all__ = ["files"]  # a fixture


def page(files: dict[str, Path], *names: str, frames: Path | None = None, **asked: Any) -> str:
    out = files["truth"].with_name("page.html")
    score_page.write(
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
    (method,) = run(files, "poor", tracking=TrackingOptions()).files
    text = score_page.render(
        score_page.ScorePage(title="t", methods=[method], categories={1: "cat", 2: "dog"})
    )
    shown = method.shown_tracking
    assert f"<td>HOTA</td><td>{100 * shown['HOTA']:.1f}</td>" in text
    assert f"<td>IDSW</td><td>{shown['IDSW']}</td>" in text


@pytest.fixture
def frames(files: dict[str, Path]) -> None:
    for v in (1, 2):
        (files["truth"].parent / f"street_{v}").mkdir()
        for t in range(4):
            image = np.full((*SIZE, 3), 90, np.uint8)
            cv2.imwrite(str(files["truth"].parent / f"street_{v}" / f"{t}.png"), image)


@pytest.mark.usefixtures("frames")
def test_the_worst_instances_link_to_their_pictures(files: dict[str, Path]) -> None:
    text = page(files, "poor", errors=True)
    links = re.findall(r'href="#(p-0-\d+)"', text)
    assert sorted(links) == ["p-0-4", "p-0-5"]
    assert all(f'id="{link}"' in text for link in links)
    assert text.count("data:image/jpeg") == 2 * 2 * 4  # instances, found and truth, frames


@pytest.mark.usefixtures("frames")
def test_clips_have_pictures_too(files: dict[str, Path], tmp_path: Path) -> None:
    files["clips"] = tmp_path / "clips.json"
    files["clips"].write_text(json.dumps(cut(poor(), 4, 3, 1)))
    assert page(files, "clips", errors=True).count("data:image/jpeg") == 2 * 2 * 4


def test_frames_that_cannot_be_read_are_said(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = page(files, "poor", frames=tmp_path / "nowhere", errors=True)
    assert 'id="pictures"' not in text
    assert "no frame that the truth names could be read" in caplog.text
