"""Numbers of a stage for Ray's own metrics: its dashboard, Prometheus and Grafana show them."""

from __future__ import annotations

import functools
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

_EVERY_S = 1.0
"""Between two speeds that a bar tells."""


def tell(stage: str, values: Mapping[str, float]) -> None:
    """Set the gauges idol_<stage>_<name>, one for each value; nothing without a connected Ray."""
    if _connected():
        for name, value in values.items():
            _metric("Gauge", stage, name).set(float(value))


def count(stage: str, name: str, amount: float) -> None:
    """Add to the counter idol_<stage>_<name>, which Prometheus knows as ..._total; as of tell.

    amount: 0 makes it known
    """
    if _connected():
        counter = _metric("Counter", stage, name)
        if amount > 0:
            counter.inc(float(amount))


class Bar(tqdm):  # type: ignore[misc]
    """A progress bar that also tells <unit>_per_second, and in `queue` how many are still to come.

    Arguments as of tqdm; desc: the stage
    """

    def __init__(self, *, total: int, desc: str, unit: str, **how: Any) -> None:
        super().__init__(total=total, desc=desc, unit=f" {unit}", **how)
        self._stage, self._name = desc, f"{unit}_per_second"
        self._told, self._when = 0, time.monotonic()
        tell(desc, {"queue": total})

    def update(self, n: float | None = 1) -> bool | None:
        """As of tqdm."""
        shown: bool | None = super().update(n)
        passed = time.monotonic() - self._when
        if passed >= _EVERY_S or self.n >= self.total:
            speed = (self.n - self._told) / max(passed, 1e-3)
            tell(self._stage, {self._name: speed, "queue": max(self.total - self.n, 0)})
            self._told, self._when = self.n, self._when + passed
        return shown


def _connected() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@functools.cache
def _metric(kind: str, stage: str, name: str) -> Any:
    from ray.util import metrics

    full = re.sub(r"\W", "_", f"idol_{stage}_{name}")
    return getattr(metrics, kind)(full, description=full.replace("_", " "))
