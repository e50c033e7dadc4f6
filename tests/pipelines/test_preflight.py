"""A node that is not fit for a job is found before its work."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cluster, preflight
from pipelines.errors import PipelineError, ResourcesError
from pipelines.storage import paths
from tests.object_storage import BUCKET, S3Server


def place(out: paths.AnyPath) -> paths.AnyPath:
    """As the driver leaves it."""
    folder = out / "_probe-1"
    paths.write_whole(folder / "driver", b"_probe-1")
    return folder


def test_a_node_that_sees_everything_has_nothing_to_say(tmp_path: Path, s3: S3Server) -> None:
    paths.write_whole(tmp_path / "frames" / "a.jpg", b"a")
    read = [tmp_path / "frames", tmp_path / "frames" / "a.jpg"]
    for out in (tmp_path, paths.at(f"s3://{BUCKET}/{tmp_path.name}")):
        assert preflight.look(place(out), "node", read) == ""
        assert (out / "_probe-1" / "node").read_bytes() == b"node"


def test_a_node_says_what_it_does_not_see(tmp_path: Path) -> None:
    absent = preflight.look(tmp_path / "elsewhere" / "_probe-1", "node", [])
    assert absent == f"a file that was written to {tmp_path / 'elsewhere'} is not there"
    folder = place(tmp_path)
    (folder / "node").mkdir()
    assert "cannot be written to and read" in preflight.look(folder, "node", [])
    lost = tmp_path / "lost.jpg"
    assert preflight.look(folder, "other", [tmp_path, lost]) == f"{lost} is not there"
    (folder / "driver").write_bytes(b"of another run")
    assert "holds another file there" in preflight.look(folder, "node", [])


@pytest.mark.ray
def test_one_node_is_not_asked(ray_local: None, tmp_path: Path) -> None:
    preflight.check(tmp_path / "never made")
    assert list(tmp_path.iterdir()) == []


_CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "
_OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  "


@pytest.mark.parametrize(
    ("line", "cuda", "old"),
    [
        (f"{_CLOSED}570.86.15  Thu Jan 23", "13.0", "570.86.15"),
        (f"{_CLOSED}580.65.06  Sun Jul 27", "13.0", ""),
        (f"{_OPEN}535.183.01  Release Build", "13.0", "535.183.01"),
        (f"{_OPEN}535.183.01  Release Build", "12.8", ""),
        ("something else", "13.0", ""),
        (None, "13.0", ""),
    ],
)
def test_a_driver_that_is_too_old_for_torch_is_found_without_a_gpu(
    tmp_path: Path, line: str | None, cuda: str, old: str
) -> None:
    if line is not None:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text(f"{line}\nGCC version: gcc 12\n")
    told = preflight.unfit_gpu(tmp_path, cuda).partition(". Start")[0]
    assert told == (
        f"NVIDIA driver {old}: CUDA 13.0 of its torch needs 580 or newer" if old else ""
    )


def test_a_torch_without_cuda_cannot_use_a_gpu(tmp_path: Path) -> None:
    assert "sees no CUDA on its node: it was built without" in preflight.unfit_gpu(tmp_path, "")
    import torch

    assert preflight._built_for() == (torch.version.cuda or "")


def test_kernels_that_compute_otherwise_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import ops

    monkeypatch.delenv("IDOL_MSDA_BACKEND", raising=False)
    assert preflight.run_kernels(gpu=False) == ""
    right = ops.ms_deform_attn
    monkeypatch.setattr(ops, "ms_deform_attn", lambda *given: right(*given) + 0.01)
    with pytest.raises(ResourcesError, match=r"other numbers than plain PyTorch \(by 1\.0e-02\)"):
        preflight.run_kernels(gpu=False)


def test_what_a_node_says_decides() -> None:
    here = preflight.versions()
    assert here["ray"] == importlib.metadata.version("ray")
    nodes = {n: {"NodeManagerHostname": f"host-{n}", "NodeManagerAddress": n} for n in "ab"}
    fine = preflight.Seen("", "", here)
    preflight._judge(nodes, {"a": fine, "b": fine})
    skewed = preflight.Seen("", "", {**here, "numpy": "1.26.4"})
    with pytest.raises(
        PipelineError, match=r"1 of 2 nodes have other packages.*host-b \(b\)"
    ) as told:
        preflight._judge(nodes, {"a": fine, "b": skewed})
    assert f"numpy 1.26.4 instead of {here['numpy']}." in str(told.value)
    unfit = preflight.Seen("", "NVIDIA driver 570", here)
    with pytest.raises(ResourcesError, match=r"GPUs of 1 of 2 nodes.*host-b \(b\): NVIDIA driver"):
        preflight._judge(nodes, {"a": skewed, "b": unfit})


TWO_NODES = """
import sys
import pytest
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from pipelines import preflight
from pipelines.errors import PipelineError

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = nodes.add_node(num_cpus=1)
ray.init(address=nodes.address, log_to_driver=False)
out = Path(sys.argv[1])
out.mkdir()
(out / "a.jpg").write_bytes(b"a")
preflight.check(out, [out / "a.jpg", out / "seen by nobody"])
assert [path.name for path in out.iterdir()] == ["a.jpg"]


def blind(place, node, read, gpu):
    # A disk of its own at the same path.
    if node == blind_node:
        place = Path("/nowhere", *place.parts[1:])
    return preflight.Seen(preflight.look(place, node, read), "", preflight.versions())


def half_blind(place, node, read, gpu):
    if node == blind_node:
        read = [Path("/nowhere", *path.parts[1:]) for path in read]
    return preflight.Seen(preflight.look(place, node, read), "", preflight.versions())


blind_node = other.node_id
name = other.node_ip_address
for function, reason in ((blind, "written to /nowhere"), (half_blind, "a.jpg is not there")):
    preflight._answer = function
    with pytest.raises(PipelineError, match="1 of 2 nodes do not see") as error:
        preflight.check(out, [out / "a.jpg"])
    assert name in str(error.value), error.value
    assert reason in str(error.value), error.value
    assert "Mount one storage at the same path" in str(error.value)
    assert [path.name for path in out.iterdir()] == ["a.jpg"]
ray.shutdown()
nodes.shutdown()
print("seen")
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_with_storage_of_its_own_is_named(tmp_path: Path) -> None:
    # In a process of its own: this one may have a Ray already.
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(cluster.ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["seen"], done.stderr
