"""Reports of a training on their way to the driver; imports nothing, because an actor starts it."""

from __future__ import annotations


class Mailbox:
    """An actor: what is put is taken once."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, dict[str, float]]] = []

    def put(self, step: int, values: dict[str, float]) -> None:
        """Leave a report."""
        self._reports.append((step, values))

    def take(self) -> list[tuple[int, dict[str, float]]]:
        """All that was left since the last time."""
        reports, self._reports = self._reports, []
        return reports
