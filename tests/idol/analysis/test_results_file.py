"""Names of results files, and reading them video by video or as a whole."""

import json
from pathlib import Path

import pytest

from idol.analysis import results_file, score_files
from idol.ytvis import truth
from idol.ytvis.lazy_rows import UnusualLayout
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


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("score", "9" * 400, r"results\[0\]\.score must be finite"),
        ("category_id", "9" * 400, r"results\[0\]\.category_id must be a whole number"),
        ("video_id", "9" * 400, r"results\[0\]\.video_id must be a whole number"),
        ("note", "9" * 5000, "a number has thousands of digits"),
        ("note", "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        (
            "segmentations",
            '[{"size": [' + "9" * 400 + ', 1], "counts": "a"}]',
            "size is .height, width.|entries, but",
        ),
    ],
)
@pytest.mark.parametrize("compat", [False, True])
def test_absurd_numbers_and_depths_are_told_with_the_name_of_the_file(
    tmp_path: Path, field: str, text: str, message: str, compat: bool
) -> None:
    path = tmp_path / "absurd.json"
    entry = json.dumps(perfect()[0] | {field: "HERE"})
    path.write_text("[" + entry.replace('"HERE"', text) + "]")
    analyses = score_files.Analyses(compat=compat)
    with pytest.raises(ValueError, match=rf"(?s)absurd\.json.*{message}") as caught:
        score_files.run(truth.read(dataset()), {"absurd": path}, analyses)
    assert len(str(caught.value)) < 500
