"""Charts: well-formed SVG whatever the numbers, with the marked trials in it."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report import charts
from pipelines.report.charts import Run

finite = st.floats(-1e12, 1e12)


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))


def trial(value: object, score: float, **marks: bool) -> Run:
    return Run({"tau": value}, score, marks.get("best", False), marks.get("default", False))


@settings(deadline=None)
@given(values=st.lists(finite | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=60))
def test_any_values_give_a_chart_that_stays_in_its_frame(values: list[float]) -> None:
    svg = charts.curve(list(enumerate(values)), "loss")
    if not any(math.isfinite(v) for v in values):
        assert "no finite value" in svg
        return
    assert "nan" not in svg
    root = parsed(svg)
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in line.attrib["points"].split():
            x, y = (float(v) for v in point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_a_curve_says_where_it_starts_and_ends() -> None:
    svg = charts.curve([(0, 4.0), (10, 2.0), (20, 2.0)], "total")
    assert 'aria-label="total: from 4 to 2 (running mean)"' in svg


def test_long_curves_are_thinned() -> None:
    long = [(step, 1 / (1 + step)) for step in range(20_000)]
    assert len(charts.curve(long, "loss")) < 20_000


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(finite, st.text(max_size=5), st.booleans(), st.none()), st.floats(0, 99)
        ),
        min_size=1,
        max_size=30,
    )
)
def test_a_sweep_over_any_kind_of_value_can_be_drawn(rows: list[tuple[object, float]]) -> None:
    svg = charts.sweep([trial(value, score) for value, score in rows], "tau")
    # Control characters of a hostile name are not XML, whatever one does; HTML reads over them.
    root = parsed(re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", svg))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == len(rows)


def test_best_and_default_are_marked_also_when_they_are_one() -> None:
    apart = charts.sweep([trial(0.1, 5, best=True), trial(0.2, 3, default=True)], "tau")
    assert apart.count('class="best"') == apart.count('class="default"') == 1
    same = charts.sweep([trial(0.1, 5, best=True, default=True), trial(0.2, 3)], "tau")
    assert same.count('class="best"') == same.count('class="default"') == 1


def test_the_line_joins_the_best_trial_of_each_number() -> None:
    trials = [trial(0.5, 10), trial(0.5, 30), trial(0.1, 20)]
    svg = charts.sweep(trials, "tau")
    (line,) = parsed(svg).iter("{http://www.w3.org/2000/svg}polyline")
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in line.attrib["points"].split())
    assert x0 < x1  # 0.1 left of 0.5
    assert y1 < y0  # 30 above 20: y points down
    assert "<polyline" not in charts.sweep([trial("paper", 1), trial("released", 2)], "tau")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 3), (22.1, 28.9), (0, 1e9), (1e-7, 2e-7)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = charts._ticks(low, high, 4)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 * high <= t <= high * (1 + 1e-9) for t in ticks)
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


@settings(deadline=None)
@given(
    values=st.lists(st.lists(finite | st.just(math.nan), max_size=5), min_size=1, max_size=8),
    named=st.booleans(),
    legend=st.booleans(),
)
def test_lines_stay_in_their_frame_whatever_the_numbers(
    values: list[list[float]], named: bool, legend: bool
) -> None:
    drawn = [charts.Line(f"<{k}>", list(enumerate(row)), k) for k, row in enumerate(values)]
    names = [str(k) for k in range(5)] if named else None
    svg = charts.lines(drawn, "values", x_label="step", x_names=names, legend=legend)
    if not any(math.isfinite(v) for row in values for v in row):
        assert "no finite value" in svg
        return
    assert "nan" not in svg
    root = parsed(svg)
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in line.attrib["points"].split():
            x, y = (float(v) for v in point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_lines_differ_by_colour_and_style_and_name_their_dots() -> None:
    drawn = [
        charts.Line("ours", [(0, 1.0), (1, 3.0)], 1),
        charts.Line("bound", [(0, 4.0), (1, 4.0)], charts.PALETTE + 2, "dashed"),
    ]
    svg = charts.lines(drawn, "AP", x_label="length", x_names=["1", "30"], legend=True)
    assert 'class="c1 solid"' in svg
    assert 'class="c2 dashed"' in svg
    assert "<title>ours: 3</title>" in svg
    assert svg.count("<circle") == 2  # dots of the solid line alone
    texts = [e.text for e in parsed(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts[-2:] == ["ours", "bound"]
    assert {"1", "30", "length"} <= set(texts)


def test_a_span_that_was_asked_for_is_kept() -> None:
    svg = charts.lines([charts.Line("p", [(0, 0.5), (1, 0.6)])], "p", x_label="r", y_span=(0, 1))
    line = re.search(r'points="([^"]*)"', svg)
    assert line is not None
    first = float(line[1].split()[0].split(",")[1])
    assert first == pytest.approx((190 - 30 + 12) / 2, abs=0.1)  # half of the frame's height


def test_a_histogram_has_a_bar_for_each_and_few_labels() -> None:
    counts = [(str(n), n) for n in range(13)]
    text = str(charts.histogram(counts, "lengths <of> videos"))
    heights = [float(h) for h in re.findall(r'<rect class="share".*? height="([\d.]+)"', text)]
    assert len(heights) == 13
    assert heights[0] == 0
    np.testing.assert_allclose(heights, heights[12] / 12 * np.arange(13), atol=0.11)
    assert "<title>12: 12</title>" in text
    assert re.findall(r'text-anchor="middle">(\d+)<', text) == ["0", "3", "6", "9", "12"]
    assert "lengths &lt;of&gt; videos" in text
    assert "no finite value" in charts.histogram([("a", 0)], "x")
