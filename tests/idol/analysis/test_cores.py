import os

from idol.analysis.cores import usable_cores


def test_a_process_may_use_one_core_at_least(monkeypatch):
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()
