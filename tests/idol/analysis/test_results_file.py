"""Names of results files, and reading them video by video or as a whole."""

import json
from pathlib import Path

import pytest

from idol.analysis import results_file
from idol.ytvis import truth
from idol.ytvis.index import UnusualLayout
from tests.idol.analysis.test_clips import cut
from tests.idol.analysis.test_score_files import dataset, perfect


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/ours/results.json"], ["ours"]),
        (["/x/ours.json", "/x/theirs.json"], ["ours", "theirs"]),
        (["/x/a/val/results.json", "/x/b/val/results.json"], ["a", "b"]),
        (["/x/a/val/results.json", "/x/b/val/results.json", "/x/c.json"], ["a/val", "b/val", "c"]),
        (["/x/a.json", "/x/a.json"], ["a", "a-2"]),
        (["/x/a.b.json", "/x/a.c.json"], ["a.b", "a.c"]),
    ],
)
def test_methods_are_named_by_what_differs(paths: list[str], names: list[str]) -> None:
    assert results_file.names_of([Path(p) for p in paths]) == names


def test_a_file_of_unusual_layout_is_read_again_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "clips.json"
    path.write_text(json.dumps(cut(perfect(), 4, 3, 1)))
    tried: list[bool] = []

    def work(results: results_file.ResultsFile) -> bool:
        tried.append(results.index is None)
        if results.index is not None:
            raise UnusualLayout("entry 0 is of a clip")
        return results.clips

    assert results_file.with_results(path, truth.read(dataset()), work)
    assert tried == [False, True]
