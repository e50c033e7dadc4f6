"""A stage runs in a Ray of its own, or in the one that is there."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import cluster
from pipelines.errors import PipelineError


@pytest.mark.ray
def test_a_session_uses_the_ray_that_is_there_and_leaves_it_running(ray_local: None) -> None:
    import ray

    with cluster.session():
        assert cluster.cpus() == 4
    assert ray.is_initialized()


def _with_process(shared: int, item: int) -> tuple[int, int]:
    return shared * item, os.getpid()


@pytest.mark.ray
def test_many_videos_share_tasks_and_each_has_its_result(ray_local: None) -> None:
    count = 3 * cluster.TASKS_AT_LEAST * cluster.cpus() + 1
    made = dict(cluster.videos(_with_process, 7, range(count), "test", False))
    assert {item: number for item, (number, _) in made.items()} == {i: 7 * i for i in range(count)}
    assert os.getpid() not in {process for _, process in made.values()}
    # Items of one task stand side by side.
    assert made[0][1] == made[1][1] == made[2][1]
    assert not list(cluster.videos(_with_process, 7, [], "test", False))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no address"])
def test_a_cluster_that_does_not_answer_is_one_sentence_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PipelineError, match=rf"^no Ray answers at {address} \(RAY_ADDRESS\)\."):
        cluster._check_answer()


def test_what_answers_but_is_no_ray_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PipelineError, match="no Ray answers"):
            cluster._check_answer()


def test_a_long_folder_for_temporary_files_is_not_where_sockets_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/short")
    assert cluster._scratch() is None
    monkeypatch.setenv("TMPDIR", "/scratch/" + 40 * "x")
    assert cluster._scratch() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + 40 * "x")
    with pytest.raises(PipelineError, match="Set RAY_TMPDIR to a folder with a path of at most 3"):
        cluster._scratch()


def test_a_kept_ray_is_not_started_for_what_fails_before(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    @contextlib.contextmanager
    def connected(num_cpus: int | None) -> Iterator[None]:
        started.append("up")
        yield
        started.append("down")

    monkeypatch.setattr(cluster, "_connected", connected)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with cluster.kept():
        assert started == []
        with cluster.session():
            assert started == ["up"]
        assert started == ["up"]
    assert started == ["up", "down"]
    with pytest.raises(ValueError, match="early"), cluster.kept():
        raise ValueError("early")
    assert started == ["up", "down"]


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
