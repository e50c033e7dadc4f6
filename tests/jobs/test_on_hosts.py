"""Jobs sent from outside to a cluster of hosts of their own, and all that can be wrong there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset
from pipelines import preflight
from tests import hosts as of_hosts
from tests.hosts import Hosts

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 10.0  # of the clock; looked at where this machine is not busy with something else
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage that all hosts see, but for its folder `hidden`, which b has another disk over."""
    made = tmp_path_factory.mktemp("cluster")
    write_dataset(made / "videos", SyntheticConfig.easy(), 4, 95_000)
    (made / "hidden").mkdir()
    return made


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[Hosts]:
    """A head and two others."""
    if reason := of_hosts.missing():
        pytest.skip(reason)
    with of_hosts.cluster(folder / "hosts") as made:
        made.start("head", cpus=1)
        made.begin("a")
        made.begin("b", hide=folder / "hidden")
        made.wait("a")
        made.wait("b")
        yield made


def busy() -> bool:
    """Whether this machine has more to do than the hosts: then seconds say nothing."""
    return os.getloadavg()[0] > 2 * (os.cpu_count() or 1)


def sent(
    hosts: Hosts, *words: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """jobs.submit from outside, and its seconds."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.submit", *words],
        cwd=ROOT, env={**hosts.environment, **variables}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    return done, time.monotonic() - began


def job(name: str, *words: str) -> list[str]:
    return ["--", "python", "-m", f"jobs.{name}", *words]


def result(hosts: Hosts, name: str, *words: str) -> dict[str, Any]:
    """The JSON of a job that has to succeed."""
    done, _ = sent(hosts, *job(name, *words))
    assert done.returncode == 0, done.stderr
    line: dict[str, Any] = json.loads(done.stdout)
    return line


def metrics(address: str) -> str:
    """What Prometheus would read from a host."""
    with urllib.request.urlopen(f"http://{address}:{of_hosts.METRICS_PORT}/metrics") as answer:
        return str(answer.read(), "utf-8")


def test_every_stage_runs_from_outside_with_the_token(hosts: Hosts, folder: Path) -> None:
    labels = ("--annotations", str(folder / "videos" / "instances.json"))
    pairs, trained, evaluated = (str(folder / name) for name in ("pairs", "train", "evaluate"))
    tiny = ("--preset", "tiny", "--set", "train.steps=4", "--set", "train.pairs_per_batch=2")
    assert result(hosts, "prepare", *labels, "--out", pairs, "--preset", "tiny")["rows"] > 0
    weights = result(hosts, "train", "--pairs", pairs, "--out", trained, *tiny)["checkpoint"]
    shipped = ("--checkpoint", "shipped", "--actors", "2")
    line = result(hosts, "evaluate", *labels, *shipped, "--out", evaluated)
    assert (Path(weights).exists(), line["AP"] > 0) == (True, True)
    told = "".join(metrics(hosts.address(name)) for name in ("head", "a", "b"))
    for name in ("frames_per_second", "queue", "stall_seconds_total"):
        assert f"ray_idol_detect_{name}" in told
    sweep = ("--evaluation", evaluated, "--search", "random", "--samples", "4")
    assert result(hosts, "sweep", *sweep, "--out", str(folder / "sweep"))["configurations"] == 5


def test_the_end_of_a_job_is_told_within_two_seconds(hosts: Hosts) -> None:
    done, _ = sent(hosts, "--", "python", "-c", "import time; print('ended', time.time())")
    ended = next(line for line in done.stderr.splitlines() if line.startswith("ended"))
    assert time.time() - float(ended.split()[1]) < 2.0 or busy()


def refused(hosts: Hosts, message: str, *words: str, **variables: str) -> None:
    """One sentence, no traceback, in seconds."""
    done, seconds = sent(hosts, *words, **variables)
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if message in line]
    assert "Traceback" not in done.stderr, done.stderr
    assert seconds <= WITHIN_S or busy(), (seconds, said)


def test_nobody_gets_in_without_the_token(hosts: Hosts, tmp_path: Path) -> None:
    path = tmp_path / "token"
    refused(hosts, "wants a token, none is here", "list", RAY_AUTH_TOKEN_PATH=str(path))
    path.write_text("fedcba9876543210" * 4)
    refused(hosts, "refuses the token that is set here", "list", RAY_AUTH_TOKEN_PATH=str(path))


def test_a_package_that_is_too_large_stays_here(hosts: Hosts, tmp_path: Path) -> None:
    with (tmp_path / "weights.pth").open("wb") as file:
        file.truncate(200 * 2**20)
    words = ("--working-dir", str(tmp_path), "--", "true")
    refused(hosts, "would be a package of 200 MiB", *words)


def prepare(folder: Path, out: str) -> list[str]:
    labels = str(folder / "videos" / "instances.json")
    return job("prepare", "--annotations", labels, "--preset", "tiny", "--out", out)


def test_an_output_that_would_vanish_is_refused(hosts: Hosts, folder: Path) -> None:
    refused(hosts, "--out runs/pairs is relative", *prepare(folder, "runs/pairs"))


def test_a_host_with_a_disk_of_its_own_is_named(hosts: Hosts, folder: Path) -> None:
    message = f"The first is b ({hosts.address('b')}): a file that was written to"
    refused(hosts, message, *prepare(folder, str(folder / "hidden" / "pairs")))


def test_gpus_that_nobody_brings_are_not_waited_for(hosts: Hosts, folder: Path) -> None:
    words = ("--checkpoint", "shipped", "--device", "gpu", "--out", str(folder / "gpu"))
    labels = ("--annotations", str(folder / "videos" / "instances.json"))
    message = "GPUs, but Ray has 5 and 0. No autoscaler brings more nodes there."
    refused(hosts, message, *job("evaluate", *labels, *words))


def test_a_host_with_other_packages_is_named(hosts: Hosts, folder: Path) -> None:
    installed = folder / "site" / "scipy-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Name: scipy\nVersion: 1.0\n")
    hosts.variables["c"] = {"PYTHONPATH": str(folder / "site")}
    hosts.start("c")
    try:
        there = preflight.versions()["scipy"]
        message = f"The first is c ({hosts.address('c')}): scipy 1.0 instead of {there}"
        refused(hosts, message, *prepare(folder, str(folder / "skewed")))
    finally:
        hosts.leave("c")


def test_a_dead_head_is_one_sentence(hosts: Hosts) -> None:
    """The last test of this file: nothing works after it."""
    hosts.kill("head")
    refused(hosts, "No Ray job server answers at", "list")
