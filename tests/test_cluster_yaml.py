"""cluster.yaml is what Ray's launcher accepts, and what this repository promises about it."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """cluster.yaml as written."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text()
    (version,) = re.findall(rf"^{package}==(\S+)$", text, re.MULTILINE)
    return version


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"max_worker": 3}, ValidationError),
        ({"head_node_type": "absent"}, ValueError),
    ],
)
def test_the_check_would_notice_a_mistake(
    cluster: dict[str, Any], change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        validate_config(prepare_config(copy.deepcopy(cluster) | change))


def test_workers_start_at_none_and_the_head_has_no_gpu(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head = types[cluster["head_node_type"]]
    workers = {key: each for key, each in types.items() if each is not head}
    assert "GPU" not in head["resources"]
    assert {each["min_workers"] for each in workers.values()} == {0}
    assert all(0 < each["max_workers"] <= cluster["max_workers"] for each in workers.values())
    assert any(each["resources"].get("GPU") for each in workers.values())
    assert any(not each["resources"].get("GPU") for each in workers.values())


def test_images_have_the_ray_and_the_python_of_the_pins(cluster: dict[str, Any]) -> None:
    images = [cluster["docker"]["image"]]
    types = cluster["available_node_types"].values()
    images += [each["docker"]["worker_image"] for each in types if "docker" in each]
    assert len(images) == 2
    for image in images:
        assert re.fullmatch(rf"rayproject/ray:{re.escape(pinned('ray'))}-py311(-gpu)?", image)


def test_nobody_runs_code_there_without_the_token(cluster: dict[str, Any]) -> None:
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert any(path.endswith("/.ray/auth_token") for path in cluster["file_mounts"])
    (start,) = [line for line in cluster["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in yaml.safe_dump(cluster)


def test_all_nodes_mount_the_same_data(cluster: dict[str, Any]) -> None:
    # Stages hand their tables on through files; a node's own disk is seen by no other.
    assert "-v /data:/data" in cluster["docker"]["run_options"]
    (mount,) = [line for line in cluster["initialization_commands"] if "mount -t nfs4" in line]
    assert f".efs.{cluster['provider']['region']}.amazonaws.com:/ /data" in mount


def test_the_dependencies_come_from_pyproject_and_constraints(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    mounts = cluster["file_mounts"]
    assert mounts["/home/ray/idol/pyproject.toml"] == "./pyproject.toml"
    assert mounts["/home/ray/idol/constraints.txt"] == "./constraints.txt"
    # The first command is run as it stands, in a folder that looks like the node's.
    listing = cluster["setup_commands"][0].replace("/home/ray/idol", str(tmp_path))
    listing = listing.replace("python -c", f"{sys.executable} -c")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    subprocess.run(["bash", "-c", listing], check=True)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("ray[") for line in lines)
    assert any(line.startswith("torch>=") for line in lines)


def test_the_kubernetes_example_has_the_same_ray_and_asks_for_the_token() -> None:
    job = yaml.safe_load((ROOT / "docs" / "kuberay-rayjob.yaml").read_text())
    spec = job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    limits = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for group in spec["workerGroupSpecs"]
    ]
    assert sorted(int(each.get("nvidia.com/gpu", 0)) for each in limits) == [0, 1]
