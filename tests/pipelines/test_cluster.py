"""A stage runs in a Ray of its own, or in the one that is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cluster
from pipelines.errors import ResourcesError


@pytest.mark.ray
def test_a_session_uses_the_ray_that_is_there_and_leaves_it_running(ray_local: None) -> None:
    import ray

    with cluster.session():
        assert cluster.cpus() == 4
    assert ray.is_initialized()


@pytest.mark.ray
def test_missing_resources_are_an_error_and_not_a_wait(ray_local: None) -> None:
    cluster.require(4)
    with pytest.raises(
        ResourcesError, match=r"needs 2 CPUs and 3 GPUs, but Ray has 4 and 0\. Ask for"
    ):
        cluster.require(2, gpus=1.5)


@pytest.mark.ray
def test_a_cluster_of_others_is_waited_for_and_nothing_stays_asked_for(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.util import placement_group_table

    monkeypatch.setenv("RAY_ADDRESS", "as if it had been joined")
    monkeypatch.setenv(cluster.WAIT_VARIABLE, "2")
    with pytest.raises(ResourcesError, match=r"No more came within 2 s \(IDOL_WAIT_FOR_NODES_S"):
        cluster.require(1, gpus=1)
    assert "Waiting up to 2 s" in caplog.text
    monkeypatch.setenv(cluster.WAIT_VARIABLE, "soon")
    with pytest.raises(ValueError, match="must be a number of seconds, got 'soon'"):
        cluster.require(1, gpus=1)
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


@pytest.mark.parametrize(
    ("size", "least", "most"), [(3, 3, 3), ("4", 4, 4), ("1..8", 1, 8), (cluster.Pool(2, 5), 2, 5)]
)
def test_a_pool_is_written_as_one_number_or_two(
    size: int | str | cluster.Pool, least: int, most: int
) -> None:
    assert cluster.Pool.of(size) == cluster.Pool(least, most)


@pytest.mark.parametrize(
    "size", ["", "many", "1..", "..4", "1...8", "2.5", "0", "-1", "8..1", "1-8"]
)
def test_what_is_no_pool_is_refused_with_an_example(size: str) -> None:
    with pytest.raises(ValueError, match=r"Write 4, or 1\.\.8\.$"):
        cluster.Pool.of(size)


def test_a_pool_has_no_more_actors_than_work() -> None:
    assert cluster.Pool(2, 8).within(5) == cluster.Pool(2, 5)
    assert cluster.Pool(2, 8).within(1) == cluster.Pool(1, 1)


def test_the_environment_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("NEVER_SET", raising=False)
    with cluster.environment({"OMP_NUM_THREADS": "1", "NEVER_SET": "x"}):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["NEVER_SET"]) == ("1", "x")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "NEVER_SET" not in os.environ


_TWICE = """
from pipelines import cluster

for _ in range(2):
    with cluster.session():
        import ray

        @ray.remote
        def threads():
            import os
            import pipelines.cluster  # from any folder
            import torch
            return torch.get_num_threads()

        assert ray.get(threads.remote()) == 1
        assert cluster.cpus() >= 4
    assert not ray.is_initialized()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_process_may_have_one_session_after_the_other_from_any_folder(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_"))
    }
    environment["PYTHONPATH"] = str(cluster.ROOT)
    # A home that cannot be written to: Ray must not need it.
    environment["HOME"] = str(tmp_path / "none")
    done = subprocess.run(
        [sys.executable, "-c", _TWICE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
