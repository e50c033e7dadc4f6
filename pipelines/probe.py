"""Whether every node of a cluster sees the places of a job, asked before its work begins."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.errors import PipelineError
from pipelines.storage import paths
from pipelines.storage.paths import AnyPath

_DRIVER = "driver"
_ANSWER_S = 60.0  # a node starts a process for this, which takes seconds

_log = logging.getLogger(__name__)


def check(out: AnyPath, read: Iterable[str | AnyPath] = ()) -> None:
    """Have every node of the connected Ray write to a folder and read what this process can.

    One node is this machine, where nothing is asked. Nodes that join later are not asked.

    out:  a folder that this process has written to
    read: files and folders; those that this process does not see are left to the readers
    Raises: PipelineError: a node sees something else at these places, or cannot write.
    """
    import ray

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    place = out / f"_probe-{uuid.uuid4().hex[:8]}"
    try:
        paths.write_whole(place / _DRIVER, place.name.encode())
        wanted = [path for path in map(paths.at, read) if path.exists()]
        faults = _ask(nodes, place, wanted)
        if faults:
            node, reason = next(iter(faults.items()))
            name = f"{nodes[node]['NodeManagerHostname']} ({nodes[node]['NodeManagerAddress']})"
            raise PipelineError(
                f"{len(faults)} of {len(nodes)} nodes do not see the same storage as this "
                f"process. The first is {name}: {reason}. Mount one storage at the same path on "
                "every node, or use an address such as s3://bucket/folder, with credentials for "
                "it on every node."
            )
    finally:
        paths.remove_tree(place)


def look(place: AnyPath, node: str, read: Sequence[AnyPath]) -> str:
    """What the node that runs this cannot do; "" where it can do all.

    place: the folder with the driver's file, where the node writes a file of its own
    """
    try:
        if (place / _DRIVER).read_bytes() != place.name.encode():
            return f"{place.parent} holds another file there than was written"
        paths.write_whole(place / node, node.encode())
        if (place / node).read_bytes() != node.encode():
            return f"{place.parent} does not give back what is written there"
    except FileNotFoundError:
        return f"a file that was written to {place.parent} is not there"
    except OSError as error:
        return f"{place.parent} cannot be written to and read ({error})"
    for path in read:
        try:
            if not path.exists():
                return f"{path} is not there"
            if path.is_file():
                with paths.open_input(path) as file:
                    file.read(1)
        except OSError as error:
            return f"{path} cannot be read ({error})"
    return ""


def _ask(nodes: dict[str, Any], place: AnyPath, read: Sequence[AnyPath]) -> dict[str, str]:
    """What each node cannot do, by node; a node that does not answer is told and left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        ).remote(place, node, read): node
        for node in nodes
    }
    answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    faults: dict[str, str] = {}
    silent = [asked[reference] for reference in late]
    for reference in answered:
        node = asked[reference]
        try:
            reason = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            reason = f"it cannot be asked: {' '.join(str(error.cause).split())[:200]}"
        except ray.exceptions.RayError:  # the node or its process died
            silent.append(node)
            continue
        if not reason and not (place / node).exists():
            reason = f"what it writes to {place.parent} is not there for this process"
        if reason:
            faults[node] = reason
    if silent:
        names = ", ".join(str(nodes[node]["NodeManagerAddress"]) for node in silent)
        _log.warning("nodes that did not say whether they see %s: %s", place.parent, names)
    return faults
