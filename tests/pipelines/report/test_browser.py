"""Pages in a real browser: they play, filter, zoom and compare, without a network.

Needs the extra `browser`, and Chromium on the path or as IDOL_CHROMIUM (Debian: `apt-get install
chromium`); skipped without.
"""

import html
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipelines.report import check_page, page, run_page
from pipelines.report.check_page import CheckReport, Finding
from pipelines.stages import detect, evaluate
from tests.pipelines import perfect

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
CHROMIUM = os.environ.get("IDOL_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: set IDOL_CHROMIUM")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """An empty page; the test fails where its scripts did."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    yield opened
    opened.close()
    assert faults == []


_MADE: list[str] = []  # the page: made by the first test, as the others need the same


@pytest.fixture
def report(make_videos: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A page about two trackers on three videos; frame t of each is grey of level 20 + 20 t."""
    if not _MADE:
        _MADE.append(_page(make_videos, tmp_path, monkeypatch))
    path = tmp_path / "report.html"
    path.write_text(_MADE[0])
    return path


def _page(make_videos: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(detect, "run", perfect.run)
    videos = make_videos([6, 3, 5])
    for video_id, length in enumerate([6, 3, 5], start=1):
        for t in range(length):
            grey = np.full((24, 36, 3), 20 + 20 * t, np.uint8)
            cv2.imwrite(str(videos.frame(video_id, t)), grey)
    runs = []
    for name, tracker in (("ours", None), ("paper", "paper")):
        request = evaluate.Request(
            annotations=videos.write(),
            checkpoint=perfect.weights(tmp_path / "w.safetensors"),
            tracker=tracker,
        )
        evaluate.run(request, tmp_path / name, log=False)
        runs.append(run_page.opened(name, tmp_path / name))
    curves = {"loss": [(step, 10.0 - step) for step in range(10)]}
    made = page.Report(title="Two trackers", curves=curves, **run_page.evaluation_part(runs))
    return page.render(made)


def grey(tab: Any, panel: int) -> float:
    """Level of a corner of a panel that no mask covers, as the screen shows it."""
    return float(
        tab.evaluate(
            "n => document.querySelectorAll('#panels canvas')[n].getContext('2d')"
            ".getImageData(2, 2, 1, 1).data[0]",
            panel,
        )
    )


def ready(tab: Any, frames: int) -> None:
    """Wait until so many frames of the open video can be drawn."""
    tab.locator(f'#player[data-pictures="{frames}"]').wait_for()


def test_the_player_shows_the_frame_it_names(report: Path, tab: Any) -> None:
    tab.goto(report.as_uri())
    tab.get_by_role("button", name="1 v1").click()
    ready(tab, 6)
    tab.locator("#player").focus()
    for t in range(6):
        assert tab.locator("#frame").inner_text() == f"frame {t} of 0–5"
        assert abs(grey(tab, 0) - (20 + 20 * t)) < 6
        tab.keyboard.press("ArrowRight")
    assert tab.locator("#frame").inner_text() == "frame 0 of 0–5"
    said = tab.locator("#panels canvas").first.get_attribute("aria-label")
    assert said.startswith("A: ours, frame 0: person")
    tab.keyboard.press("Space")
    sync_api.expect(tab.locator("#slider")).not_to_have_value("0")
    tab.keyboard.press("Space")
    assert tab.locator("#play").inner_text() == "Play"
    tab.keyboard.press("n")
    assert "video 1" not in tab.locator("#title").inner_text()


def test_videos_are_filtered_sorted_and_searched(report: Path, tab: Any) -> None:
    tab.goto(report.as_uri())
    shown = tab.locator("#f-count")
    assert shown.inner_text() == "3 of 3 videos"
    tab.fill("#f-text", "v2")
    assert shown.inner_text() == "1 of 3 videos"
    tab.fill("#f-text", "")
    tab.fill("#f-switches", "1")
    assert shown.inner_text() == "0 of 3 videos"
    tab.fill("#f-switches", "0")
    tab.select_option("#f-category", "car")
    assert shown.inner_text() == "3 of 3 videos"
    heading = tab.locator("#video-table th button", has_text="video")
    heading.click()
    first = tab.locator("#video-table tbody button").first
    assert first.inner_text() == "1 v1"
    heading.click()
    assert first.inner_text() == "3 v3"


def test_two_runs_stand_side_by_side_with_their_difference(report: Path, tab: Any) -> None:
    tab.goto(report.as_uri())
    tab.get_by_role("button", name="1 v1").click()
    ready(tab, 6)
    titles = tab.locator("#panels figcaption")
    assert titles.all_inner_texts() == ["A: ours", "B: paper", "truth"]
    tab.check("#difference")
    assert titles.all_inner_texts() == ["A: ours", "B: paper", "truth", "difference"]
    assert tab.locator("#timelines svg").count() == 2
    tab.select_option("#run-b", "-1")
    assert titles.all_inner_texts() == ["ours", "truth", "difference"]
    assert "tracker.similarity" in tab.locator("#provenance").inner_text()


def test_all_panels_zoom_together_and_tips_tell_values(report: Path, tab: Any) -> None:
    tab.goto(report.as_uri())
    tab.get_by_role("button", name="1 v1").click()
    ready(tab, 6)
    tab.click("#zoom-in")
    assert tab.locator("#zoom").inner_text() == "160 %"
    styles = {canvas.get_attribute("style") for canvas in tab.locator("#panels canvas").all()}
    assert len(styles) == 1
    assert "scale(1.6)" in styles.pop()
    tab.locator("svg.timeline rect[data-tip]").nth(1).hover()
    assert "is shown by track" in tab.locator("#tip").inner_text()
    tab.locator("#training svg.chart").hover()
    assert tab.locator("#tip").inner_text().startswith("step ")
    tab.get_by_role("button", name="Enlarge: loss").click()
    assert tab.locator("#large svg.chart").is_visible()


def test_the_page_works_in_a_frame_without_rights_as_mlflow_shows_it(
    report: Path, tab: Any, tmp_path: Path
) -> None:
    outer = tmp_path / "outer.html"
    inner = html.escape(report.read_text(), quote=True)
    outer.write_text(f'<iframe sandbox="allow-scripts" width=1300 height=900 srcdoc="{inner}">')
    tab.goto(outer.as_uri())
    frame = tab.frame_locator("iframe")
    assert frame.locator("#f-count").inner_text() == "3 of 3 videos"
    frame.get_by_role("button", name="1 v1").click()
    ready(frame, 6)
    frame.locator("#player").focus()
    tab.keyboard.press("ArrowRight")
    assert frame.locator("#frame").inner_text().startswith("frame 1 of")
    inside = tab.frames[1]
    assert abs(grey(inside, 0) - 40) < 6


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_nobody_is_shut_out(report: Path, browser: Any, tmp_path: Path, colours: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    check = CheckReport(
        annotations="a.json",
        frames="frames",
        counts={"videos": 3},
        categories=[{"category_id": 1, "name": "car", "tracks": 1, "videos": 1, "frames": 2}],
        histograms={"frames of a video": [("1", 2), ("2", 1)]},
        findings=[Finding("refused", "no frames", 1, ["video 1"])],
    )
    other = tmp_path / "check.html"
    other.write_text(check_page.render(check))
    for path in (report, other):
        tab = browser.new_page(color_scheme=colours)
        tab.goto(path.as_uri())
        found = axe.run(tab)
        assert found.violations_count == 0, found.generate_report()
        tab.close()


def test_an_old_browser_shows_the_frames_and_says_what_it_lacks(report: Path, tab: Any) -> None:
    tab.add_init_script("delete window.DecompressionStream")
    tab.goto(report.as_uri())
    tab.get_by_role("button", name="1 v1").click()
    ready(tab, 6)
    assert tab.locator("#facts").inner_text().startswith("no masks, as this browser cannot")
    assert abs(grey(tab, 0) - 20) < 6
    assert tab.locator("#timelines svg").count() == 2
