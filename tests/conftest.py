"""Fixtures that all tests share: the data beside the repository, one Ray, clean random state."""

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import object_storage

ROOT = Path(__file__).resolve().parent.parent

# Ray reads these once, when it is first imported, and any test module may do that: so they are set
# here, before collection. The token is this session's own: Ray would otherwise write one into the
# home directory. The last is the next Ray's default, which this one warns about.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# fixed: the same examples in every run, so that a failure is one of the change under test.
# free: other examples each time, five times as many; a failing one is kept and tried first.
# Neither measures time, which on a busy machine says nothing.
_untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", _untimed, derandomize=True, database=None)
settings.register_profile("free", _untimed, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other process has the other core


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal the tests by file to the processes of pytest-xdist; all that use Ray to one process.

    Fixtures of a file are then made once, and Ray is started once. What a file uses is read from
    its text: the process that deals has not collected it.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            text = (ROOT / file).read_text()
            return "ray" if "ray_local" in text or "mark.ray" in text else file

    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a `gpu` test where there is no device, unless one is required to be there."""
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("IDOL_REQUIRE_CUDA") == "1":
        # A machine that is meant to have a GPU and lost it must not pass by skipping everything.
        pytest.fail("IDOL_REQUIRE_CUDA=1, but torch finds no CUDA device", pytrace=False)
    pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[object_storage.S3Server]:
    """An S3 server on loopback for the whole run."""
    with object_storage.server() as running:
        yield running


@pytest.fixture
def s3(
    s3_server: object_storage.S3Server, monkeypatch: pytest.MonkeyPatch
) -> object_storage.S3Server:
    """The same, and the environment that leads this process and its children to it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; skips the test where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the reference data in a folder '{path.name}' beside the repository")
    return path


@pytest.fixture(scope="session")
def ray_local(s3_server: object_storage.S3Server) -> Iterator[None]:
    """One local Ray for the whole session, with four logical CPUs.

    address="local" because a bare `ray.init()` joins whatever cluster the machine already has.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Workers are started by the raylet and inherit its environment, so what is set here
        # reaches them without a runtime_env (which would cost a second per worker).
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(autouse=True)
def _same_random_state_after() -> Iterator[None]:
    """Give every test back the random state it found, so that their order does not matter."""
    # Our own code uses generators; NumPy's global state is what libraries below it may touch.
    python, torch_cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002
    dtype = torch.get_default_dtype()
    yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(torch_cpu)
    torch.set_default_dtype(dtype)
