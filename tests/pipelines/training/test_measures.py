"""Images a second and the share of waiting, by a clock that the test turns."""

import pytest

from pipelines.training import measures


def test_speed_counts_from_its_making_and_waits_only_where_told(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(measures.time, "perf_counter", lambda: now[0])
    measuring = measures.Speed()
    for waited, worked in ((1.0, 3.0), (0.5, 3.5)):
        with measuring.waiting():
            now[0] += waited
        now[0] += worked
    found = measuring.measured(48)
    assert found == pytest.approx({"images_per_second": 6.0, "data_wait_share": 1.5 / 8})
