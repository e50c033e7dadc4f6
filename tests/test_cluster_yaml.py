"""The launchers' files are what Ray accepts, and what this repository promises about them."""

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


CLOUDS = ("cluster.yaml", "deploy/gcp.yaml")
ALL = (*CLOUDS, "deploy/local.yaml")


@pytest.fixture(scope="module", params=ALL)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A launcher's file as written."""
    return read(request.param)


@pytest.fixture(scope="module", params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The file of a cloud as written."""
    return read(request.param)


def read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return content


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
    cloud: dict[str, Any], change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        validate_config(prepare_config(copy.deepcopy(cloud) | change))


@pytest.mark.parametrize("path", ALL)
def test_it_says_at_its_top_that_it_was_not_run(path: str) -> None:
    top = (ROOT / path).read_text().splitlines()[:16]
    assert any(line.startswith("# NOT RUN ") for line in top)


def test_workers_start_at_none_and_the_head_has_no_gpu(cloud: dict[str, Any]) -> None:
    types = cloud["available_node_types"]
    head = types[cloud["head_node_type"]]
    workers = {key: each for key, each in types.items() if each is not head}
    assert "GPU" not in head["resources"]
    assert {each["min_workers"] for each in workers.values()} == {0}
    assert all(0 < each["max_workers"] <= cloud["max_workers"] for each in workers.values())
    assert any(each["resources"].get("GPU") for each in workers.values())
    assert any(not each["resources"].get("GPU") for each in workers.values())


def test_spot_comes_first_and_on_demand_is_the_same_machine(cloud: dict[str, Any]) -> None:
    types = cloud["available_node_types"]
    assert "-e RAY_enable_autoscaler_v2=1" in cloud["docker"]["run_options"]  # knows priority
    for name in ("cpu", "gpu"):
        spot, demand = copy.deepcopy((types[f"{name}_spot"], types[f"{name}_on_demand"]))
        assert spot.pop("priority") > demand.pop("priority")
        markets = [
            each["node_config"].pop("InstanceMarketOptions", None)
            or each["node_config"].pop("scheduling", {}).get("provisioningModel")
            for each in (spot, demand)
        ]
        assert markets[0] in ({"MarketType": "spot"}, "SPOT")
        assert markets[1] in (None, "STANDARD")
        assert spot == demand


def test_gpu_nodes_have_an_image_with_a_driver_for_cuda_13_and_check_it(
    cloud: dict[str, Any],
) -> None:
    for name in ("gpu_spot", "gpu_on_demand"):
        node = cloud["available_node_types"][name]
        assert node["initialization_commands"][:2] == cloud["initialization_commands"]
        assert "-ge 580 ]" in node["initialization_commands"][-1]


def test_every_aws_node_has_the_image_the_profile_and_the_group() -> None:
    types = read("cluster.yaml")["available_node_types"]
    for name, each in types.items():
        node = each["node_config"]
        assert re.fullmatch(
            r"resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-"
            r"22\.04/latest/ami-id",
            node["ImageId"],
        )
        profile = "idol-head" if name == "head" else "idol-worker"
        assert node["IamInstanceProfile"] == {"Name": profile}
        assert node["SecurityGroupIds"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"


def test_ray_leaves_an_image_as_it_is_written() -> None:
    from ray.autoscaler._private.aws import config as aws

    prepared = prepare_config(read("cluster.yaml"))
    before = copy.deepcopy(prepared["available_node_types"])
    aws._check_ami(prepared)
    assert prepared["available_node_types"] == before


@pytest.mark.parametrize(
    ("version", "status"), [("580.65.06", 0), ("590.1", 0), ("570.86.15", 1), ("", 2)]
)
def test_the_check_of_the_driver_refuses_an_older_one(
    cloud: dict[str, Any], tmp_path: Path, version: str, status: int
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {version}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    command = cloud["available_node_types"]["gpu_spot"]["initialization_commands"][-1]
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bool(done.returncode) == bool(status)
    assert ("needs 580 or newer" in done.stderr) == bool(status)


def test_images_have_the_ray_and_the_python_of_the_pins(cluster: dict[str, Any]) -> None:
    types = cluster.get("available_node_types", {}).values()
    images = [each["docker"]["worker_image"] for each in types if "docker" in each]
    for image in (cluster["docker"]["image"], *images):
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
    if "worker_ips" in cluster["provider"]:
        return  # machines that one has are set up by hand
    (mount,) = [line for line in cluster["initialization_commands"] if "mount -t nfs" in line]
    assert re.search(r"(\.efs\.us-west-2\.amazonaws\.com:/|:/data) /data; sudo chmod", mount)


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
