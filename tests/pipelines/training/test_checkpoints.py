"""A step of a training is there when its last file is, on a disk and in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.storage import paths
from pipelines.storage.layout import LOSSES
from pipelines.training import checkpoints
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


def files(text: str) -> checkpoints.Files:
    return {"first": writer(f"a{text}"), LOSSES: writer(f"b{text}")}


def steps(out: paths.AnyPath) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.complete(out)]


def test_the_newest_whole_checkpoints_are_kept_and_ray_s_register_is_not(out):
    assert (checkpoints.complete(out), checkpoints.newest_step(out)) == ([], 0)
    register = out / checkpoints.FOLDER / "checkpoint_manager_snapshot.json"
    for step in (2, 10, 9):
        checkpoints.commit(checkpoints.folder(out, step), files(str(step)))
    paths.write_whole(register, b"{}")
    assert steps(out) == [2, 9, 10]
    checkpoints.prune(out, 2)
    assert (steps(out), checkpoints.newest_step(out)) == ([9, 10], 10)
    assert (checkpoints.folder(out, 9) / "first").read_text() == "a9"
    assert not register.exists()
    checkpoints.clear(out)
    assert steps(out) == []


def test_a_checkpoint_that_was_cut_short_is_not_there_and_the_one_before_is(out):
    checkpoints.commit(checkpoints.folder(out, 2), files(""))

    def killed(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    for step in (4, 2):  # a new one, and one that is written again
        for cut in (
            {"first": killed, LOSSES: writer("b")},
            {"first": writer("a"), LOSSES: killed},
        ):
            with pytest.raises(KeyboardInterrupt):
                checkpoints.commit(checkpoints.folder(out, step), cut)
            assert steps(out) == ([2] if step == 4 else [])
    checkpoints.commit(checkpoints.folder(out, 6), files(""))
    checkpoints.prune(out, 3)
    assert [path.name for path in (out / checkpoints.FOLDER).glob("step-*")] == ["step-00000006"]
