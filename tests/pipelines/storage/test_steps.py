"""A step of a training is there when its last file is, on a disk and in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.storage import paths, steps
from tests.object_storage import BUCKET


@pytest.fixture(params=["disk", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> paths.AnyPath:
    """An output folder of either kind, not made yet."""
    if request.param == "disk":
        return tmp_path / "out"
    request.getfixturevalue("s3")
    return paths.at(f"s3://{BUCKET}/{tmp_path.name}/out")


def writer(text: str):
    return lambda path: path.write_text(text)


def test_a_step_takes_the_place_of_the_one_before(out):
    assert steps.complete(out, "last") == []
    for step in (2, 10):
        steps.commit(out, step, {"first": writer(f"a{step}"), "last": writer(f"b{step}")})
        (place,) = steps.complete(out, "last")
        assert (place, steps.step_of(place)) == (steps.folder(out, step), step)
        assert (place / "first").read_text() == f"a{step}"
    steps.clear(out)
    assert list(out.glob("step-*")) == []


def test_a_step_that_was_cut_short_is_not_there_and_the_one_before_is(out):
    steps.commit(out, 2, {"first": writer("a"), "last": writer("b")})

    def killed(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    for step in (4, 2):  # a new one, and one that is written again
        for files in (
            {"first": killed, "last": writer("b")},
            {"first": writer("a"), "last": killed},
        ):
            with pytest.raises(KeyboardInterrupt):
                steps.commit(out, step, files)
            found = [steps.step_of(path) for path in steps.complete(out, "last")]
            assert found == ([2] if step == 4 else [])
    steps.commit(out, 4, {"first": writer("a"), "last": writer("b")})
    assert [path.name for path in out.glob("step-*")] == ["step-00000004"]
