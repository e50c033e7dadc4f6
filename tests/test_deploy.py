"""The files of deploy/ fit the pins, each other, what KubeRay takes, and the jobs they start."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

ROOT = Path(__file__).resolve().parent.parent
KUBERAY = ROOT / "deploy" / "kuberay"
JOBS = ("prepare", "train", "evaluate", "sweep")
ALL = (*JOBS, "cluster")

# Names and kinds of the fields of ray.io/v1, as KubeRay's API reference (v1.6) lists them.
JOB_FIELDS = {
    "activeDeadlineSeconds": int, "backoffLimit": int, "rayClusterSpec": dict,
    "submitterPodTemplate": dict, "metadata": dict, "clusterSelector": dict,
    "submitterConfig": dict, "managedBy": str, "deletionStrategy": dict, "entrypoint": str,
    "runtimeEnvYAML": str, "jobId": str, "submissionMode": str, "entrypointResources": str,
    "entrypointNumCpus": float, "entrypointNumGpus": float, "ttlSecondsAfterFinished": int,
    "shutdownAfterJobFinishes": bool, "suspend": bool,
}  # fmt: skip
CLUSTER_FIELDS = {
    "suspend": bool, "managedBy": str, "autoscalerOptions": dict, "headServiceAnnotations": dict,
    "enableInTreeAutoscaling": bool, "gcsFaultToleranceOptions": dict, "headGroupSpec": dict,
    "rayVersion": str, "workerGroupSpecs": list, "authOptions": dict, "upgradeStrategy": dict,
}  # fmt: skip
GROUP_FIELDS = {
    "template": dict, "rayStartParams": dict, "groupName": str, "replicas": int, "minReplicas": int,
    "maxReplicas": int, "idleTimeoutSeconds": int, "numOfHosts": int, "suspend": bool,
    "resources": dict, "labels": dict, "scaleStrategy": dict,
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "resources": dict, "image": str, "imagePullPolicy": str, "securityContext": dict,
    "idleTimeoutSeconds": int, "upscalingMode": str, "version": str, "env": list, "envFrom": list,
    "volumeMounts": list,
}  # fmt: skip


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text()
    (version,) = re.findall(rf"^{package}==(\S+)$", text, re.MULTILINE)
    return version


def resource(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file of deploy/kuberay, and the specification of the cluster in it."""
    whole = yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())
    return whole, whole["spec"].get("rayClusterSpec", whole["spec"])


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def fits(part: dict[str, Any], fields: dict[str, type]) -> None:
    for name, value in part.items():
        assert name in fields, f"KubeRay has no field {name}"
        assert isinstance(value, fields[name]), f"{name} is {value!r}"


@pytest.mark.parametrize("name", ALL)
def test_every_field_is_one_of_kuberays(name: str) -> None:
    whole, cluster = resource(name)
    assert whole["apiVersion"] == "ray.io/v1"
    assert whole["kind"] == ("RayCluster" if name == "cluster" else "RayJob")
    if name != "cluster":
        fits(whole["spec"], JOB_FIELDS)
        assert whole["spec"]["submitterConfig"].keys() == {"backoffLimit"}
        assert whole["spec"]["submissionMode"] == "K8sJobMode"
    fits(cluster, CLUSTER_FIELDS)
    fits(cluster["autoscalerOptions"], AUTOSCALER_FIELDS)
    for group in groups(cluster):
        fits(group, GROUP_FIELDS)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group.get("minReplicas", 0) <= group.get("maxReplicas", 0)


@pytest.mark.parametrize("name", ALL)
def test_pods_ask_for_the_token_and_run_as_nobody_in_particular(name: str) -> None:
    _, cluster = resource(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == pinned("ray")
    for group in groups(cluster):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False}
        # Ray takes the limits for what it may use.
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]} == {"data", "shm"}


@pytest.mark.parametrize("name", ALL)
def test_pods_with_a_gpu_go_where_gpus_are_and_others_do_not_ask(name: str) -> None:
    _, cluster = resource(name)
    for group in groups(cluster):
        pod = group["template"]["spec"]
        gpu = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        assert (gpu == "1") == (group.get("groupName") == "gpu")
        tolerated = [each["key"] for each in pod.get("tolerations", ())]
        assert tolerated == (["nvidia.com/gpu"] if gpu else [])
        assert bool(pod.get("nodeSelector")) == bool(gpu)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_tried_again_ends_some_day_and_leaves_no_bill(name: str) -> None:
    spec = resource(name)[0]["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["submitterConfig"]["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    # Trying again is safe for the other jobs without a flag.
    assert ("--resume" in spec["entrypoint"]) == (name == "train")


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_command_parses_and_its_cluster_has_what_it_asks_for(name: str) -> None:
    whole, cluster = resource(name)
    python, flag, module, *words = shlex.split(whole["spec"]["entrypoint"])
    assert (python, flag, module) == ("python", "-m", f"jobs.{name}")
    options = getattr(importlib.import_module(module), name.capitalize())
    job = tyro.cli(options, args=words)
    assert str(job.out).startswith("/data/")
    gpus = [g["maxReplicas"] for g in cluster["workerGroupSpecs"] if g["groupName"] == "gpu"]
    assert sum(gpus) >= {"train": 8, "evaluate": 8}.get(name, 0)


@pytest.mark.parametrize("path", [*KUBERAY.glob("*.yaml"), ROOT / "deploy" / "Dockerfile"])
def test_what_was_not_run_says_so_at_its_top(path: Path) -> None:
    assert re.search(r"^# NOT (RUN|BUILT) ", "\n".join(path.read_text().splitlines()[:15]), re.M)


def dockerfile() -> list[str]:
    """The instructions, continued lines joined, comments left out."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def test_the_image_has_a_cpu_and_a_cuda_target_that_do_not_run_as_root() -> None:
    lines = dockerfile()
    targets = [line.split()[-1] for line in lines if line.startswith("FROM")]
    assert targets == ["base", "cpu", "cuda"]
    assert lines[-1] == "USER ray"
    assert lines[next(i for i, x in enumerate(lines) if x.endswith("AS cuda")) - 1] == "USER ray"


def test_the_image_installs_nothing_beside_the_pins() -> None:
    installs = [part for line in dockerfile() if line.startswith("RUN")
                for part in line.split("&&") if "pip install" in part]  # fmt: skip
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in part for part in installs)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_image_copies_what_there_is() -> None:
    copied = [word for line in dockerfile() if line.startswith("COPY")
              for word in line.split()[1:-1] if not word.startswith("--")]  # fmt: skip
    assert {"ops", "idol", "pipelines", "jobs", "constraints.txt"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    (base,) = re.findall(r"PYTHON_IMAGE=python:(\S+)-slim", "\n".join(dockerfile()))
    assert base == "3.11"  # the Python of Ray's images in the launchers' files
