"""A pool of actors: every item once, whatever dies, and nothing left behind."""

import os
from pathlib import Path

import pytest

from pipelines import actors
from pipelines.cluster import Pool
from pipelines.errors import ResourcesError

pytestmark = pytest.mark.ray


class Failing:
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no such network")


class Doubling:
    """Doubles numbers; dies at 3, but only once for each folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / f"born-{os.getpid()}").touch()

    def work(self, item: int) -> tuple[int, int]:
        if item == 7:
            raise ValueError("seven")
        if item == 3 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(1)
        return item, 2 * item


def test_every_item_is_done_also_the_one_at_which_an_actor_died(
    ray_local: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = dict(actors.work(Doubling, (tmp_path,), range(6), Pool(1, 2), 0.0))
    assert done == {n: 2 * n for n in range(6)}
    assert (tmp_path / "died").exists()
    # Ray's line on arguments in the object store, without which an actor could not start again.
    assert "restart will fail" not in capfd.readouterr().err


def test_no_more_actors_are_asked_for_than_items_and_none_stays(
    ray_local: None, tmp_path: Path
) -> None:
    assert list(actors.work(Doubling, (tmp_path,), [1], Pool(1, 4), 0.0)) == [(1, 2)]
    assert len(list(tmp_path.glob("born-*"))) == 1
    assert list(actors.work(Doubling, (tmp_path,), [], Pool(1, 4), 0.0)) == []


def test_an_error_of_an_item_is_raised_as_it_is(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seven"):
        list(actors.work(Doubling, (tmp_path,), [7], Pool(1, 1), 0.0))


def test_an_actor_that_cannot_be_made_is_one_line(ray_local: None) -> None:
    with pytest.raises(ResourcesError, match=r"^an actor does not start: .*no such network$"):
        list(actors.work(Failing, (), [1], Pool(1, 1), 0.0))


def test_more_actors_than_there_is_room_for_are_not_waited_for(
    ray_local: None, tmp_path: Path
) -> None:
    done = actors.work(Doubling, (tmp_path,), range(8, 20), Pool(1, 12), 0.0)
    assert dict(done) == {n: 2 * n for n in range(8, 20)}
