"""How fast a training loop is, and how long it waits for its batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Speed:
    """How fast training is since this was made, and for what share of the time it waits."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def measured(self, images: int) -> dict[str, float]:
        """images_per_second, and data_wait_share in 0..1. images: of all workers, until now"""
        passed = time.perf_counter() - self._started
        return {"images_per_second": images / passed, "data_wait_share": self._waited / passed}
