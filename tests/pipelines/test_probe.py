"""A node that sees other storage than the driver is found before the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cluster, probe
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
        assert probe.look(place(out), "node", read) == ""
        assert (out / "_probe-1" / "node").read_bytes() == b"node"


def test_a_node_says_what_it_does_not_see(tmp_path: Path) -> None:
    absent = probe.look(tmp_path / "elsewhere" / "_probe-1", "node", [])
    assert absent == f"a file that was written to {tmp_path / 'elsewhere'} is not there"
    folder = place(tmp_path)
    (folder / "node").mkdir()
    assert "cannot be written to and read" in probe.look(folder, "node", [])
    lost = tmp_path / "lost.jpg"
    assert probe.look(folder, "other", [tmp_path, lost]) == f"{lost} is not there"
    (folder / "driver").write_bytes(b"of another run")
    assert "holds another file there" in probe.look(folder, "node", [])


@pytest.mark.ray
def test_one_node_is_not_asked(ray_local: None, tmp_path: Path) -> None:
    probe.check(tmp_path / "never made")
    assert list(tmp_path.iterdir()) == []


TWO_NODES = """
import sys
import pytest
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from pipelines import probe
from pipelines.errors import PipelineError

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = nodes.add_node(num_cpus=1)
ray.init(address=nodes.address, log_to_driver=False)
out = Path(sys.argv[1])
out.mkdir()
(out / "a.jpg").write_bytes(b"a")
probe.check(out, [out / "a.jpg", out / "seen by nobody"])
assert [path.name for path in out.iterdir()] == ["a.jpg"]
look = probe.look


def blind(place, node, read):
    # A disk of its own at the same path.
    if node == blind_node:
        place = Path("/nowhere", *place.parts[1:])
    return look(place, node, read)


def half_blind(place, node, read):
    if node == blind_node:
        read = [Path("/nowhere", *path.parts[1:]) for path in read]
    return look(place, node, read)


blind_node = other.node_id
name = other.node_ip_address
for function, reason in ((blind, "written to /nowhere"), (half_blind, "a.jpg is not there")):
    probe.look = function
    with pytest.raises(PipelineError, match="1 of 2 nodes do not see") as error:
        probe.check(out, [out / "a.jpg"])
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
