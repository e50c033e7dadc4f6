"""Numbers of a stage for Ray's own metrics: its dashboard, Prometheus and Grafana show them."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from typing import Any


def tell(stage: str, values: Mapping[str, float]) -> None:
    """Set the gauges idol_<stage>_<name>, one for each value; nothing without a connected Ray."""
    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        return
    for name, value in values.items():
        _gauge(re.sub(r"\W", "_", f"idol_{stage}_{name}")).set(float(value))


@functools.cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, description=name.replace("_", " "))
