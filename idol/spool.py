"""Long sequences of which one item at a time is in memory: kept in a file, or made when asked for.

Iteration, len, indices and slices are those of a tuple. Every access makes the item again, so
items are compared by what they hold, and loops over the same sequence pay each time.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, NoReturn, TypeVar, overload

Item = TypeVar("Item")
Made = TypeVar("Made")


class _Lazy(Sequence[Item]):
    """A sequence by its length and `_item`."""

    __slots__ = ()

    def _item(self, index: int) -> Item:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(index, slice):
            return tuple(map(self._item, range(len(self))[index]))
        return self._item(range(len(self))[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self._item, range(len(self)))


class Spool(_Lazy[Item]):
    """Picklable items in a temporary file: 8 bytes of memory for each.

    The file has no name, so that it ends with this object, or with the process however that ends.
    Several threads may read. Another process cannot: send it the items that it needs.
    """

    __slots__ = ("__weakref__", "_ends", "_file")

    def __init__(self, items: Iterable[Item] = ()) -> None:
        """Raises: OSError: the folder for temporary files (TMPDIR) is full; whatever items raise"""
        self._file = tempfile.TemporaryFile(prefix="idol-", buffering=1 << 18)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        for item in items:
            self.append(item)

    def append(self, item: Item) -> None:
        """Add an item; by one thread at a time. Raises: OSError: as of `Spool`."""
        data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        with _about_folder():
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _item(self, index: int) -> Item:
        start, stop = self._ends[index : index + 2]
        with _about_folder():
            self._file.flush()
            item: Item = pickle.loads(os.pread(self._file.fileno(), stop - start, start))  # nosec B301
        return item

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Spool lies in a file of this process; send single items of it")


@contextmanager
def _about_folder() -> Iterator[None]:
    """Tell of a full disk where it is: the file has no name."""
    try:
        yield
    except OSError as error:
        reason = f"{os.strerror(error.errno or 0)}; TMPDIR names another folder"
        raise OSError(error.errno, reason, tempfile.gettempdir()) from error


class Mapped(_Lazy[Made], Generic[Item, Made]):
    """What a function makes of the items of a sequence, each time that one is asked for.

    places: the indices of the items, in this order; None: all
    """

    __slots__ = ("_function", "_items", "_places")

    def __init__(
        self,
        function: Callable[[Item], Made],
        items: Sequence[Item],
        places: Sequence[int] | None = None,
    ) -> None:
        self._function, self._items = function, items
        self._places = range(len(items)) if places is None else array("q", places)

    def __len__(self) -> int:
        return len(self._places)

    def _item(self, index: int) -> Made:
        return self._function(self._items[self._places[index]])


def picked(items: Sequence[Item], places: array[int]) -> Sequence[Item | None]:
    """The items at these places, None where a place is negative."""
    return Mapped(lambda place: None if place < 0 else items[place], places)


def stored(store: Spool[Item], items: Iterable[Item | None]) -> Sequence[Item | None]:
    """The items, those that are not None in the store behind what it has."""
    places = array("q")
    for item in items:
        places.append(-1 if item is None else len(store))
        if item is not None:
            store.append(item)
    return picked(store, places)


class Keyed(Mapping[int, Item]):
    """Items of a sequence by keys, in this order."""

    __slots__ = ("_items", "_places")

    def __init__(self, keys: Iterable[int], items: Sequence[Item]) -> None:
        self._items = items
        self._places = {key: place for place, key in enumerate(keys)}
        assert len(self._places) == len(items), "a key for each item"

    @property
    def items_in_order(self) -> Sequence[Item]:
        """The items without their keys."""
        return self._items

    def __getitem__(self, key: int) -> Item:
        return self._items[self._places[key]]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places
