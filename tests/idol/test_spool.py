"""Sequences of which one item at a time is in memory."""

import errno
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from idol.spool import Keyed, Mapped, Spool, stored

ITEMS = [("a", 1), ("", 2), ("ü" * 1000, None), ("b", [3])]


@pytest.mark.parametrize("kind", ["spool", "mapped", "chosen"])
def test_it_is_a_tuple_to_those_who_read_it(kind: str) -> None:
    spool = Spool(iter(ITEMS))
    found = {
        "spool": spool,
        "mapped": Mapped(lambda item: item, spool),
        "chosen": Mapped(lambda item: item, [*ITEMS[::-1], None], [3, 2, 1, 0]),
    }[kind]
    assert (len(found), list(found), list(reversed(found))) == (4, ITEMS, ITEMS[::-1])
    assert (found[2], found[-1], found[1:]) == (ITEMS[2], ITEMS[3], tuple(ITEMS[1:]))
    assert found[::-2] == tuple(ITEMS[::-2])
    assert ("b", [3]) in found
    for index in (4, -5):
        with pytest.raises(IndexError):
            found[index]


def test_an_item_can_be_added_after_others_were_read() -> None:
    spool = Spool[Any]()
    assert not spool
    for item in ITEMS:
        spool.append(item)
        assert spool[-1] == item
    assert list(spool) == ITEMS


def test_items_by_key_are_a_mapping_that_makes_only_what_is_asked_for() -> None:
    made: list[int] = []
    found = Keyed([7, 3], Mapped(lambda n: made.append(n) or 10 * n, [1, 2]))
    assert (list(found), len(found), 3 in found, 4 in found, found == []) == (
        [7, 3],
        2,
        True,
        False,
        False,
    )
    assert not made
    assert (found[3], made) == (20, [2])
    assert dict(found) == {7: 10, 3: 20}
    with pytest.raises(KeyError):
        found[4]


def test_many_threads_read_at_the_same_time() -> None:
    spool = Spool(bytes([n]) * 1000 * n for n in range(200))
    wrong: list[int] = []

    def read(start: int) -> None:
        order = [*range(start, 200), *range(start)]
        wrong.extend(n for n in order if spool[n] != bytes([n]) * 1000 * n)

    threads = [threading.Thread(target=read, args=(25 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_stored_items_come_back_with_the_gaps_between_them() -> None:
    spool: Spool[bytes | None] = Spool([b"before"])
    one, two = stored(spool, [None, b"", b"a"]), stored(spool, [b"b", None])
    assert (list(one), list(two), len(spool)) == ([None, b"", b"a"], [b"b", None], 4)
    assert (one[2], one[-3], two[0:2]) == (b"a", None, (b"b", None))


def test_another_process_cannot_have_it_and_is_told() -> None:
    with pytest.raises(TypeError, match="a file of this process; send single items"):
        pickle.dumps(Spool(ITEMS))


def test_a_full_disk_is_told_with_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
        monkeypatch.setattr("tempfile.gettempdir", lambda: "/scratch")
        with pytest.raises(OSError, match="TMPDIR names another folder: '/scratch'") as caught:
            Spool(ITEMS)
        assert caught.value.errno == errno.ENOSPC
