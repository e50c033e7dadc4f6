"""The processes that train together, as a caller asks for them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines import cluster
from pipelines.cluster import Pool
from pipelines.errors import ResourcesError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The processes that train together.

    count:  how many, or at least and at most, as machines come and go; 0: inside this process
    gpus:   one GPU for each, NCCL instead of gloo
    cpus:   CPUs for each: threads of torch, and room for those that read
    labels: of the machines that may be used (a label selector of Ray)
    """

    count: Pool | int = 2
    gpus: bool = False
    cpus: int = 1
    labels: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.count, int) and self.count < 0:
            raise ValueError(f"workers must be 0 or more, got {self.count}")
        if self.cpus < 1:
            raise ValueError(f"a worker needs 1 CPU or more, got {self.cpus}")

    @property
    def least(self) -> int:
        """Workers without which training does not begin."""
        return self.count if isinstance(self.count, int) else self.count.least

    @property
    def most(self) -> int:
        """Workers at most."""
        return self.count if isinstance(self.count, int) else self.count.most

    def check_labels(self) -> None:
        """Make sure that nodes of the connected Ray have the labels: Ray would wait for ever.

        Raises: ResourcesError: none has, and Ray is one of our own, to which no node comes.
        """
        import ray

        # "!spot" and "in(a, b)" are words of Ray's own that are not asked here.
        wanted = {k: v for k, v in (self.labels or {}).items() if re.fullmatch(r"[\w.\-]*", v)}
        nodes = [node.get("Labels") or {} for node in ray.nodes() if node["Alive"]]
        if any(wanted.items() <= labels.items() for labels in nodes):
            return
        names = ", ".join(f"{key}={value}" for key, value in wanted.items())
        told = f"no node of {len(nodes)} has the labels {names}"
        if cluster.own():
            raise ResourcesError(f"{told}. Leave out --label-selector, or join a cluster.")
        _log.warning("%s: training begins when nodes that have them join", told)

    def scaling(self) -> Any:
        """For Ray Train."""
        from ray import train

        return train.ScalingConfig(
            num_workers=self.most if self.least == self.most else (self.least, self.most),
            use_gpu=self.gpus,
            resources_per_worker={"CPU": self.cpus} | ({"GPU": 1} if self.gpus else {}),
            label_selector=dict(self.labels) if self.labels else None,
        )
