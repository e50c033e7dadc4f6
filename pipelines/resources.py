"""Whether the cluster has the CPUs and GPUs that a stage asks for, or can bring them."""

from __future__ import annotations

import json
import logging
import os
import time

from pipelines import cluster
from pipelines.errors import ResourcesError

WAIT_VARIABLE = "IDOL_WAIT_FOR_NODES_S"
"""Seconds to wait for the nodes of a joined cluster, where a stage needs more than there are.
Unset: 900 where an autoscaler can bring them, else none."""
_WAIT_S = 900.0  # a GPU instance that has to pull its image first takes ten minutes
_FIRST_WORD_S = 8.0
"""An autoscaler says what nodes there are every 5 s; of a head that has just started, not yet."""
_STATUS = "__autoscaling_status"
_BY_HAND = "node_"
"""How the type of a node begins that was started by hand, in the words of Ray's autoscaler."""

_log = logging.getLogger(__name__)


def require(count: int, cpus: float = 1.0, gpus: float = 0.0, *, instead: str) -> None:
    """Make sure that so many workers fit at once: Ray itself would wait for ever.

    Without an autoscaler there is no use in waiting. With one, nodes come when something asks for
    them, so this asks, logs that it does, and waits; IDOL_WAIT_FOR_NODES_S says how long.

    cpus, gpus: of each worker
    instead:    options to change, for the message
    Raises: ResourcesError: there are too few.
    """
    lacking = _lacking(count, cpus, gpus)
    if lacking is None:
        return
    limit = 0.0 if cluster.own() else _patience()
    if limit <= 0:
        known = "" if cluster.own() else " No autoscaler brings more nodes there."
        raise ResourcesError(f"{lacking}{known} Use {instead}, or a larger cluster.")
    _log.warning("%s Waiting up to %.0f s for nodes to join.", lacking, limit)
    from ray.util import placement_group, remove_placement_group

    # An autoscaler adds nodes for placement groups that wait; the group is removed at the end.
    bundle = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    group = placement_group([bundle] * count, strategy="PACK")
    try:
        deadline = time.monotonic() + limit
        while not group.wait(timeout_seconds=1):
            lacking = _lacking(count, cpus, gpus)
            if lacking is None:
                return
            if time.monotonic() >= deadline:
                raise ResourcesError(
                    f"{lacking} No more came within {limit:.0f} s "
                    f"({WAIT_VARIABLE} sets how long to wait). See `ray status` for what the "
                    f"autoscaler tries, or use {instead}."
                )
    finally:
        remove_placement_group(group)


def grows() -> bool:
    """Whether an autoscaler may bring nodes to the connected cluster.

    The monitor of a head that was started by hand runs too, and only tells what it sees: every node
    by a name of its own. Whatever says anything else, or nothing, may bring some.
    """
    deadline = time.monotonic() + _FIRST_WORD_S
    while (types := _node_types()) is None and time.monotonic() < deadline:
        time.sleep(0.5)
    return not types or not all(name.startswith(_BY_HAND) for name in types)


def _patience() -> float:
    """Seconds to wait for nodes."""
    text = os.environ.get(WAIT_VARIABLE)
    if text is None:
        return _WAIT_S if grows() else 0.0
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{WAIT_VARIABLE} must be a number of seconds, got {text!r}") from None


def _node_types() -> list[str] | None:
    """What the autoscaler calls the nodes that there are; None where none has said anything."""
    from ray._private.worker import global_worker
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental import internal_kv

    client = global_worker.gcs_client
    if is_autoscaler_v2(fetch_from_server=True, gcs_client=client):
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(client.address)
        return [node.ray_node_type_name for node in status.active_nodes + status.idle_nodes]
    text = internal_kv._internal_kv_get(_STATUS)
    report = json.loads(text).get("autoscaler_report") if text else None
    return [*report["active_nodes"]] if report else None


def _lacking(count: int, cpus_each: float, gpus_each: float) -> str | None:
    """A sentence about what is missing; None where the cluster has enough, in use or not."""
    import ray

    there = ray.cluster_resources()
    have_cpus, have_gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if have_cpus >= count * cpus_each and have_gpus >= count * gpus_each:
        return None
    return (
        f"This stage needs {count * cpus_each:g} CPUs and {count * gpus_each:g} GPUs, but Ray has "
        f"{have_cpus:g} and {have_gpus:g}."
    )
