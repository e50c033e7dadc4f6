"""Damaged files, a few of each kind: `python -m benchmarks.fuzz` reads many more."""

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_readers import KINDS

COUNTS = {"results": 150, "annotations": 60, "rle": 300, "tables": 20, "manifests": 60}
"""Files that take about a second; 40 of the other kinds."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_in_words_or_read_as_it_was_meant(kind: str) -> None:
    found = list(fuzz.executions(kind, range(COUNTS.get(kind, 40))))
    assert [(seed, why) for seed, outcome, why in found if outcome == "failure"] == []
    assert "refused" in {outcome for _, outcome, _ in found}


@pytest.mark.slow
def test_a_reader_that_dies_is_counted_and_the_next_file_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "sitecustomize.py").write_text("""
import random, os
class Dying(random.Random):
    def __init__(self, seed=None):
        super().__init__(seed)
        if seed == "rle 1":
            os.abort()
random.Random = Dying
""")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    tally = fuzz.fuzz("rle", 0, 60.0, 4)
    assert [seed for seed, _ in tally.failures] == [1]
    assert "ended with -6" in tally.failures[0][1]
    assert tally.counts.total() == 4
