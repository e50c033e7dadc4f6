"""Charts of a sweep: well-formed whatever was tried, and importance that tells what matters."""

import xml.etree.ElementTree as ET

import numpy as np

from pipelines.report import sweep_charts
from pipelines.report.charts import Run
from pipelines.report.sweep_charts import Share


def runs(count: int) -> list[Run]:
    rng = np.random.default_rng(0)
    out = []
    for n in range(count):
        x, kind, idle = rng.random(), str(rng.choice(["a", "b"])), rng.random()
        score = 50 + 20 * x + (5 if kind == "a" else 0) + rng.normal()
        values = {"x": x, "kind": kind, "idle": idle, "fixed": 3, "none": None}
        out.append(Run(values, score, best=n == 3, default=n == 5))
    return out


def test_importance_is_the_share_of_the_variance_that_a_field_explains() -> None:
    found = sweep_charts.importance(runs(400))
    shares = {each.field: each.share for each in found}
    assert list(shares) == ["x", "kind", "idle"]
    # Variances: 400 / 12 of x, 25 / 4 of kind, 1 of the noise.
    whole = 400 / 12 + 25 / 4 + 1
    assert abs(shares["x"] - 400 / 12 / whole) < 0.06
    assert abs(shares["kind"] - 25 / 4 / whole) < 0.05
    assert shares["idle"] < 0.02
    assert all(each.low <= each.share <= each.high for each in found)
    assert found[0].low > 0.7
    assert sweep_charts.unimportant(found) == "No effect beyond chance: idle."
    assert sweep_charts.unimportant(found[:2]) == ""
    assert sweep_charts.importance([]) == []
    assert sweep_charts.importance([Run({"x": 1.0}, 2.0), Run({"x": 2.0}, 2.0)]) == []


def test_parallel_coordinates_show_every_varying_field_and_the_marked_runs() -> None:
    svg = sweep_charts.parallel(runs(40), "AP")
    root = ET.fromstring(str(svg))
    lines = list(root.iter("polyline"))
    assert len(lines) == 40
    assert all(len(line.attrib["points"].split()) == 4 for line in lines)  # x, kind, idle, AP
    assert [line.attrib["class"] for line in lines[-2:]] == ["run default", "run best"]
    names = [text.text for text in root.iter("text")]
    assert {"x", "kind", "idle", "AP", "a", "b"} <= set(names)
    assert "fixed" not in names
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for line in lines:
        for point in line.attrib["points"].split():
            across, up = map(float, point.split(","))
            assert 0 <= across <= width
            assert 0 <= up <= height


def test_thousands_of_runs_are_thinned_but_the_marked_stay() -> None:
    root = ET.fromstring(str(sweep_charts.parallel(runs(2000), "AP")))
    kinds = [line.attrib["class"] for line in root.iter("polyline")]
    assert len(kinds) <= 302
    assert "run best" in kinds
    assert "run default" in kinds


def test_nothing_to_compare_draws_nothing() -> None:
    assert sweep_charts.parallel([], "AP") == ""
    assert sweep_charts.parallel([Run({"x": 1}, 1.0)], "AP") == ""
    assert sweep_charts.bars([]) == ""
    evil = '<script>"&'
    svg = sweep_charts.bars([Share(evil, 0.5, 0.4, 0.6)])
    assert "<script>" not in svg
    ET.fromstring(str(svg))
    ET.fromstring(str(sweep_charts.parallel([Run({evil: 1}, 1.0), Run({evil: evil}, 2.0)], evil)))
