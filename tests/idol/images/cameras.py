"""Sources that behave as cameras and servers do, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from idol.images.live import Frame, Image, Source, SourceError


@dataclass(frozen=True, slots=True)
class Camera(Source):
    """Gives pictures whether they are taken or not.

    parts: pictures of each time that it is opened; after each but the last it is lost
    pace:  asked before every frame; set it to let them come
    fails: how often it cannot be opened again, each time that it was lost
    """

    name: str = "camera:0"
    every: int = 1
    frames: int | None = None
    rate: float | None = 10.0
    endless: bool = True
    parts: Sequence[Sequence[Image]] = ()
    pace: threading.Semaphore | None = None
    fails: int = 0
    opened: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Frame]:
        tried = len(self.opened)
        self.opened.append(tried)
        part, place = divmod(tried, self.fails + 1)
        if place:
            raise SourceError(f"{self.name} cannot be opened.")
        for number, image in enumerate(self.parts[part]):
            if self.pace is not None:
                self.pace.acquire()
            yield Frame(number, number / 10, image)
        if part + 1 < len(self.parts):
            raise SourceError(f"{self.name} is lost.")


def pictures(count: int, first: int = 0) -> list[Image]:
    """Small pictures that say which they are."""
    return [np.full((8, 8, 3), first + n, np.uint8) for n in range(count)]
