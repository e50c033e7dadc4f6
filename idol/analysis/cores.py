"""How many processors this process may use, and work that is shared among them."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def usable_cores() -> int:
    """Cores that the system gives this process, where it says so; otherwise all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    pool: Executor, function: Callable[[Item], Made], items: Iterable[Item], ahead: int
) -> Iterator[Made]:
    """As pool.map, which takes all items at once: here `ahead` of them are in memory."""
    waiting: collections.deque[Future[Made]] = collections.deque()
    for item in items:
        if len(waiting) == ahead:
            yield waiting.popleft().result()
        waiting.append(pool.submit(function, item))
    while waiting:
        yield waiting.popleft().result()
