"""Whether the nodes of a cluster are fit for a job, asked of each before its work begins."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import cluster
from pipelines.errors import PipelineError, ResourcesError
from pipelines.storage import paths
from pipelines.storage.layout import PROBE
from pipelines.storage.paths import AnyPath

PACKAGES = (
    *("ray", "torch", "numpy", "pyarrow", "pycocotools", "opencv-python-headless", "av"),
    *("simplejpeg", "pillow", "scipy", "safetensors", "numba", "msgspec", "mlflow", "optuna"),
)
"""Of what decides bytes, or passes between nodes."""
_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver for each CUDA (NVIDIA's table of minor version compatibility)."""

_DRIVER = "driver"
_ANSWER_S = 60.0  # a node starts a process for this, which takes seconds
_KERNELS_S = 8.0
"""After which work begins without having seen a kernel run: a GPU may be busy for hours."""
_FAULT_S = 1.0  # for others that have the same fault

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node says of itself.

    blind:    why it does not see the storage as the driver does; "" where it does
    unfit:    why its GPUs cannot be used; "" where they can, or it has none
    versions: of PACKAGES that it has, without the part after "+"
    """

    blind: str
    unfit: str
    versions: Mapping[str, str]


def check(
    out: AnyPath, read: Iterable[str | AnyPath] = (), *, gpus: float = 0.0, network: bool = False
) -> None:
    """Ask every node of the joined cluster; nothing is asked of a Ray of our own.

    Each writes to `out` and reads what this process can, and says what packages it has; one with
    GPUs also whether their driver fits torch. Nodes that join later are not asked.

    out:     a folder that this process has written to
    read:    files and folders; those that this process does not see are left to the readers
    gpus:    that a worker holds
    network: whether workers compute with the network: then a worker runs its kernels
    Raises:
        PipelineError: a node sees something else at these places, cannot write, or has other
                       packages than this process.
        ResourcesError: its GPUs cannot be used, or kernels do not run.
    """
    import ray

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2 and cluster.own():
        return
    place = out / f"{PROBE}{uuid.uuid4().hex[:8]}"
    deadline = time.monotonic() + _KERNELS_S
    kernels = _ask_kernels(gpus) if network else None
    try:
        paths.write_whole(place / _DRIVER, place.name.encode())
        wanted = [path for path in map(paths.at, read) if path.exists()]
        seen = _ask(nodes, place, wanted, gpus > 0)
        _judge(nodes, seen)
    finally:
        paths.remove_tree(place)
    if kernels is not None:
        _judge_kernels(kernels, max(0.1, deadline - time.monotonic()))


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


@functools.cache
def versions() -> dict[str, str]:
    """Those of PACKAGES that this process has; of builds for CPU and GPU the same."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def unfit_gpu(root: Path = Path("/"), cuda: str | None = None) -> str:
    """Why torch cannot use this machine's GPUs, without importing it; "" where nothing speaks
    against it.

    root: of the file system with /proc
    cuda: that torch was built for, such as "13.0"; "": none; None: as its package says
    """
    cuda = _built_for() if cuda is None else cuda
    if not cuda:
        return (
            f"torch {versions().get('torch')} sees no CUDA on its node: it was built without. "
            "Install a CUDA build of torch there, or ask for CPUs"
        )
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return ""  # not every container has this file
    found = re.search(r"Kernel Module\D*?(?:for \S+\s+)?(\d+)(\.[\d.]+)", text)
    least = _DRIVERS.get(int(cuda.partition(".")[0]))
    if found is None or least is None or int(found[1]) >= least:
        return ""
    return (
        f"NVIDIA driver {found[1]}{found[2]}: CUDA {cuda} of its torch needs {least} or newer. "
        "Start the node from a newer machine image"
    )


def run_kernels(gpu: bool) -> str:
    """Run deformable attention beside its plain version; what of it is slow.

    gpu:     on CUDA
    returns: why it fell back to plain PyTorch; "" where the fast kernels ran
    Raises: ResourcesError: torch sees no CUDA, or the results differ.
    """
    import torch

    import ops
    from ops import backend, reference

    if gpu and not torch.cuda.is_available():
        raise ResourcesError(f"torch {torch.__version__} sees no CUDA on its node")
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(backend.__name__)
    logger.addHandler(handler)
    drawn = torch.Generator().manual_seed(0)
    shapes = [(1, 24, 2, 16), (1, 5, 2, 1, 4, 2), (1, 5, 2, 1, 4)]
    value, locations, weights = (
        torch.rand(shape, generator=drawn).to("cuda" if gpu else "cpu") for shape in shapes
    )
    try:
        ours = ops.ms_deform_attn(value, [(4, 6)], locations, weights)
    finally:
        logger.removeHandler(handler)
    plain = reference.ms_deform_attn(value, [(4, 6)], locations, weights)
    if not torch.allclose(ours, plain, rtol=1e-3, atol=1e-4):
        raise ResourcesError(
            "the kernel of deformable attention gives other numbers than plain PyTorch "
            f"(by {float((ours - plain).abs().max()):.1e})"
        )
    return told[0] if told else ""


def _built_for() -> str:
    """The CUDA of the installed torch; "" where it has none."""
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        text = (Path(folder) / "version.py").read_text()
        built = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
        return built[1] if built else ""
    return ""


def _answer(place: AnyPath, node: str, read: Sequence[AnyPath], gpu: bool) -> Seen:
    """The task of one node."""
    return Seen(look(place, node, read), unfit_gpu() if gpu else "", versions())


def _ask(
    nodes: dict[str, Any], place: AnyPath, read: Sequence[AnyPath], gpus: bool
) -> dict[str, Seen]:
    """What each node says, by node; one that does not answer is told and left out.

    A fault ends the waiting for the others.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_answer)
    asked = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        ).remote(place, node, read, gpus and nodes[node]["Resources"].get("GPU", 0.0) > 0): node
        for node in nodes
    }
    late, seen, silent = list(asked), {}, []
    deadline = time.monotonic() + _ANSWER_S
    while late and (left := deadline - time.monotonic()) > 0:
        done, late = ray.wait(late, timeout=left)
        for reference in done:
            node = asked[reference]
            try:
                said = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                reason = f"it cannot be asked: {' '.join(str(error.cause).split())[:200]}"
                said = Seen(reason, "", versions())
            except ray.exceptions.RayError:  # the node or its process died
                silent.append(node)
                continue
            if not said.blind and not (place / node).exists():
                reason = f"what it writes to {place.parent} is not there for this process"
                said = Seen(reason, said.unfit, said.versions)
            seen[node] = said
            if _faulty(said):
                deadline = min(deadline, time.monotonic() + _FAULT_S)
    silent += [] if any(map(_faulty, seen.values())) else [asked[reference] for reference in late]
    if silent:
        names = ", ".join(str(nodes[node]["NodeManagerAddress"]) for node in silent)
        _log.warning("nodes that did not say whether they are fit for this job: %s", names)
    return seen


def _faulty(said: Seen) -> bool:
    return bool(said.blind or said.unfit) or dict(said.versions) != versions()


def _judge(nodes: dict[str, Any], seen: Mapping[str, Seen]) -> None:
    """Raise what check does of what the nodes have said."""

    def first(faults: Mapping[str, str]) -> str:
        node, reason = next(iter(faults.items()))
        address = nodes[node]["NodeManagerAddress"]
        return f"The first is {nodes[node]['NodeManagerHostname']} ({address}): {reason}."

    if blind := {node: said.blind for node, said in seen.items() if said.blind}:
        raise PipelineError(
            f"{len(blind)} of {len(nodes)} nodes do not see the same storage as this process. "
            f"{first(blind)} Mount one storage at the same path on every node, or use an address "
            "such as s3://bucket/folder, with credentials for it on every node."
        )
    if unfit := {node: said.unfit for node, said in seen.items() if said.unfit}:
        raise ResourcesError(
            f"The GPUs of {len(unfit)} of {len(nodes)} nodes cannot be used. {first(unfit)}"
        )
    here = versions()
    other = {
        node: ", ".join(
            f"{name} {said.versions.get(name, 'absent')} instead of {here.get(name, 'absent')}"
            for name in PACKAGES
            if said.versions.get(name) != here.get(name)
        )
        for node, said in seen.items()
    }
    if skewed := {node: text for node, text in other.items() if text}:
        raise PipelineError(
            f"{len(skewed)} of {len(nodes)} nodes have other packages than this process. "
            f"{first(skewed)} Install constraints.txt on every node, or start all from one image."
        )


def _ask_kernels(gpus: float) -> Any:
    """Have a worker of the kind that the job will use run its kernels."""
    import ray

    task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(run_kernels)
    # Inside a trial of Ray Tune it would else have to fit into what the trial has reserved.
    return task.options(scheduling_strategy="DEFAULT").remote(gpus > 0)


def _judge_kernels(asked: Any, limit: float) -> None:
    """Raise, or tell, what became of the kernels, if that is known within so many seconds."""
    import ray

    try:
        told = ray.get(asked, timeout=limit)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(asked, force=True)
        _log.info("no worker ran its kernels within %.0f s; the work begins", _KERNELS_S)
        return
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ResourcesError):
            raise error.cause from error
        told = " ".join(str(error.cause).split())[:300]
        raise ResourcesError(f"Kernels do not run on a worker: {told}") from error
    except ray.exceptions.RayError as error:
        raise ResourcesError(
            f"The process that ran the kernels on a worker died: {str(error).splitlines()[-1]}"
        ) from error
    if told:
        _log.warning("on a worker %s", told)
