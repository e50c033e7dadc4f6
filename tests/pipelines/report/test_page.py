"""The report page: self-contained, escaped, with the numbers it was given and no empty section."""

import html.parser
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.page import MetricSet, Report, SweepRow, render, write
from pipelines.report.viewer import Viewer

VOID = {"meta", "img", "br", "link", "line", "polyline", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that tags close in order, and collects attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def sections(self) -> list[str]:
        return [value for tag, key, value in self.attributes if (tag, key) == ("section", "id")]

    @property
    def ids(self) -> list[str]:
        return [value for tag, key, value in self.attributes if key == "id"]


def viewer(name: str = "v", **more: Any) -> Viewer:
    """One video that one run was evaluated on."""
    track = {"id": 3, "name": name, "score": 0.9, "truth": 0, "spans": [0, 1]}
    run = {"ap": 0.5, "counted": 0, "found": 1, "tracks": [track], "shown": [], "switches": []}
    video = {"set": 0, "id": 7, "name": name, "length": 2, "truth": [], "runs": {"0": run}}
    data = {"runs": [{"name": name, "set": 0}], "sets": [name], "videos": [video | more]}
    return Viewer(data=data, parts={"clip-0-film": "AAAA"}, note="Clips of 1 of 2 videos.")


def full_report() -> Report:
    return Report(
        title="Demo of <b>IDOL</b>",
        created="2026-01-02 03:04",
        command="python -m jobs.demo --out 'my runs'",
        summary="What happened.",
        facts={"machine": "2 CPU cores", "training": "3.1 min"},
        config={"train": {"steps": 300}},
        metrics=[
            MetricSet(
                name="easy",
                stats={"AP": 0.587, "AP50": 0.877, "AP75": 0.661, "AR1": 0.41, "AR10": 0.652},
                frame_oracle=0.571,
                upper_bound=0.618,
                per_category={"star": {"AP": 0.512}, "moon": {"AP": -1.0}},
            ),
            MetricSet(name="crowded", stats={"AP": 0.224, "APs": -1.0}, upper_bound=0.359),
        ],
        curves={"total": [(0, 9.0), (10, 3.0)], "embedding": [(0, 1.0), (10, 0.5)]},
        sweep=[
            SweepRow(params={"tau": 0.5, "weighting": "released"}, score=0.2, default=True),
            SweepRow(params={"tau": 0.1, "weighting": "paper"}, score=0.25),
        ],
        sweep_name="crowded",
        viewer=viewer("two cars cross"),
        provenance={"easy": {"code": "0.1.0-abc", "labels": "val.json"}, "crowded": {"code": "x"}},
        differences=[("tracker.tau", [0.5, 0.1])],
        rejects=[{"video_id": 9, "path": "a/b.jpg", "reason": "<script>alert(1)</script>"}],
        commands={"Evaluate again": "python -m jobs.evaluate"},
    )


def test_the_page_needs_nothing_from_outside() -> None:
    text = render(full_report())
    for tag, key, value in Page(text).attributes:
        if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert value.startswith("#"), (tag, key, value[:60])
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert not re.search(r"url\(", text)
    # And a browser is told to refuse, should anything slip in.
    assert "default-src 'none'" in text
    assert "unsafe-eval" not in text


def test_the_page_shows_the_numbers_it_was_given() -> None:
    page = Page(render(full_report()))
    text = " ".join(" ".join(page.text).split())
    for expected in (
        *("58.7", "87.7", "66.1", "41.0", "65.2", "57.1", "61.8", "22.4", "35.9"),
        *("3.1", "13.5"),  # lost in association
        "51.2",
        "2026-01-02 03:04",
        "machine 2 CPU cores",
        "Best AP 25.0 , against 20.0 with the default values",
        "Clips of 1 of 2 videos.",
        "0.1.0-abc",
        "tracker.tau",
        "a/b.jpg",
        "python -m jobs.evaluate",
        '"steps": 300',
    ):
        assert expected.replace(" ,", ",") in text, expected
    assert page.sections == [
        "scores", "videos", "training", "sweep", "rejects", "provenance", "again"
    ]  # fmt: skip
    assert len(page.ids) == len(set(page.ids))
    assert '"name":"two cars cross"' in render(full_report())


def test_what_is_undefined_is_a_dash_and_never_minus_one() -> None:
    page = Page(render(full_report()))
    assert "–" in page.text
    assert "-100.0" not in page.text
    assert "-1" not in page.text


def test_an_empty_report_has_a_heading_and_no_section() -> None:
    page = Page(render(Report(title="Nothing yet")))
    assert page.sections == []
    said = "".join(page.text).split()
    assert said == ["Nothing", "yet", "Nothing", "yet", "Close"]  # title, heading, hidden dialog


@pytest.mark.parametrize(
    ("report", "ids"),
    [
        (Report(title="t", metrics=[MetricSet(name="easy", stats={"AP": 0.5})]), ["scores"]),
        (Report(title="t", metrics=[MetricSet(name="none", stats={})]), ["scores"]),
        (Report(title="t", curves={"total": [(0, 1.0)]}), ["training"]),
        (Report(title="t", curves={"total": []}), ["training"]),
        (Report(title="t", sweep=[SweepRow(params={"tau": 1}, score=0.5)]), ["sweep"]),
        (Report(title="t", viewer=viewer()), ["videos"]),
        (Report(title="t", provenance={"easy": {"code": "1"}}), ["provenance"]),
        (Report(title="t", rejects=[{"reason": "gone"}]), ["rejects"]),
        (Report(title="t", config={"a": 1}), ["again"]),
    ],
)
def test_each_section_stands_alone(report: Report, ids: list[str]) -> None:
    assert Page(render(report)).sections == ids


def test_names_from_the_data_are_text_and_never_markup() -> None:
    evil = "\"><img src=x onerror=alert(1)>'&"
    report = Report(
        title=evil,
        created=evil,
        command=evil,
        summary=evil,
        facts={evil: evil},
        config={evil: evil},
        metrics=[MetricSet(name=evil, stats={"AP": 0.1}, per_category={evil: {"AP": 0.1}})],
        curves={evil: [(0, 1.0), (1, 2.0)], evil + "2": []},
        sweep=[
            SweepRow(params={evil: evil}, score=0.1),
            SweepRow(params={evil: evil + "2"}, score=0.2),
        ],
        sweep_name=evil,
        viewer=viewer("</script>" + evil),
        provenance={evil: {evil: evil}},
        differences=[(evil, [evil])],
        rejects=[{evil: evil}],
        commands={evil: evil},
    )
    page = Page(render(report))
    assert not any(key == "onerror" for _, key, _ in page.attributes)
    assert not any(tag == "img" for tag, _, _ in page.attributes)
    assert evil in page.text


def test_the_best_trial_stands_first_and_the_default_is_marked() -> None:
    table = render(full_report()).split('id="sweep"')[1].split("<tbody>")[1].split("</tbody>")[0]
    first, second = table.split("</tr>")[:2]
    assert "25.0" in first
    assert "best" in first
    assert "20.0" in second
    assert "default" in second


def test_writing_is_atomic_and_repeatable(tmp_path: Path) -> None:
    path = write(tmp_path / "report.html", full_report())
    first = path.read_bytes()
    write(path, full_report())
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_percentages_are_refused() -> None:
    with pytest.raises(ValueError, match=r"AP of set 'easy' must lie in \[0, 1\], got 58.7"):
        MetricSet(name="easy", stats={"AP": 58.7})
