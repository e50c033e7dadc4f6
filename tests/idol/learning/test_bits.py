"""Equal runs give equal bits, and so does a run that was stopped and went on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from idol import presets
from tests.idol.learning import some_steps

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the other process: sums of two threads have other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_another_process(out, *arguments, **environment):
    """What a checkpoint holds after the steps of another process."""
    command = [sys.executable, "-m", "tests.idol.learning.some_steps", str(out), *arguments]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True, timeout=600)
    return torch.load(out, weights_only=True)


def differences(found, expected, path=""):
    """Where two checkpoints differ, in names."""
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(found, expected) else [path]
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        parts = ((found[k], v, f"{path}/{k}") for k, v in expected.items())
    elif isinstance(expected, list):
        parts = (
            (a, b, f"{path}/{i}") for i, (a, b) in enumerate(zip(found, expected, strict=True))
        )
    else:
        return [] if found == expected else [path]
    return [name for part in parts for name in differences(*part)]


@pytest.mark.slow
def test_a_run_that_goes_on_in_another_process_ends_with_the_bits_of_one_in_one_go(tmp_path):
    trainer = some_steps.go_on(some_steps.start(some_steps.small()), 3)
    torch.save(trainer.state_dict(), tmp_path / "half.pt")
    torch.manual_seed(7)  # nothing depends on what the process has drawn
    whole = some_steps.go_on(trainer, 6).state_dict()
    resumed = in_another_process(tmp_path / "end.pt", "6", str(tmp_path / "half.pt"))
    assert whole["step"] == 6
    assert whole["average"] is not None
    assert differences(resumed, whole) == []


@pytest.mark.slow
def test_equal_runs_in_two_processes_give_equal_weights(tmp_path):
    mine = some_steps.go_on(some_steps.start(presets.by_name("tiny")), 5).state_dict()
    # With a cache of its own, the other process compiles the kernels that this one has read.
    cache = str(tmp_path / "numba")
    other = in_another_process(tmp_path / "a.pt", "5", "--preset", NUMBA_CACHE_DIR=cache)
    assert differences(other, mine) == []
