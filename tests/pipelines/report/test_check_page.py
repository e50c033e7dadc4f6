"""The page and the table of a check say all that was found, and the page loads nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.report import check_page
from pipelines.report.check_page import CheckReport, Finding
from pipelines.report.strips import Strip


@pytest.fixture
def report() -> CheckReport:
    return CheckReport(
        annotations="<a>.json",
        frames="/data/JPEGImages",
        counts={"videos": 70, "frames_a_video": {"min": 2, "median": 4.5}, "nothing": {}},
        categories=[
            {"category_id": n, "name": f"<c{n}>", "tracks": n, "videos": n, "frames": 2 * n}
            for n in range(25)
        ],
        histograms={"Videos by their frames": [("2", 40), ("3", 0), ("4", 30)], "None": []},
        findings=[
            Finding("refused", "jobs.prepare will end", 1, ["8 of 70 videos <b>"]),
            Finding("left out", "frames that are lost", 30, [f"{n}.jpg" for n in range(30)]),
            Finding("repaired", "ids", 7, ["annotations[3]"]),
        ],
    )


def test_the_page_has_every_part_and_loads_nothing(report: CheckReport) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    strip = Strip(title="video 3", truth=[picture], frame_labels=["frame 1"], caption="lost <i>")
    text = check_page.render(report, [strip])
    for section in ("findings", "numbers", "categories", "pictures"):
        assert f'id="{section}"' in text
        assert f'href="#{section}"' in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert "<b>" not in text.split("</header>")[1]
    assert "&lt;c24&gt;" in text
    assert "1 refused, 30 left out, 7 repaired." in text
    assert "19.jpg" in text
    assert "20.jpg" not in text
    assert "… and 10 more in check.json" in text
    assert '<td>frames a video</td><td class="wrap">min 2, median 4.5</td>' in text
    assert "<title>2: 40</title>" in text
    assert "None: no finite value" in text
    assert "lost &lt;i&gt;" in text
    assert text.count("<img ") == 1


def test_a_page_without_faults_says_so(report: CheckReport) -> None:
    text = check_page.render(replace(report, findings=[], categories=[]))
    assert "Nothing is wrong." in text
    assert 'id="categories"' not in text
    assert 'id="pictures"' not in text
    assert check_page.table(replace(report, findings=[])).endswith("\nnothing is wrong")


def test_the_table_has_counts_categories_and_findings(report: CheckReport) -> None:
    lines = check_page.table(report).splitlines()
    assert lines[:2] == [
        "videos                    70",
        "frames a video            min 2, median 4.5",
    ]
    assert lines[3].split() == ["category", "tracks", "videos", "frames"]
    assert lines[4].split() == ["<c24>", "24", "24", "48"]
    assert lines[24] == "... and 5 more"
    assert lines[-3:] == [
        "refused          1 jobs.prepare will end (first: 8 of 70 videos <b>)",
        "left out        30 frames that are lost (first: 0.jpg)",
        "repaired         7 ids (first: annotations[3])",
    ]


def test_files_are_whole_and_hold_everything(report: CheckReport, tmp_path: Path) -> None:
    check_page.write(tmp_path / "new", report, [])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["check.html", "check.json"]
    content = json.loads((tmp_path / "new" / "check.json").read_text())
    assert content["checked"] == content["annotations"] == "<a>.json"
    assert content["counts"]["videos"] == 70
    assert len(content["findings"][1]["places"]) == 30
    assert content["histograms"]["Videos by their frames"] == [["2", 40], ["3", 0], ["4", 30]]
