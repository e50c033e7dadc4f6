import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ops import cpu, reference

SHAPES = [(12, 16), (6, 8), (3, 4), (2, 2)]
ROOT = Path(__file__).parents[2]


def arguments(dtype: torch.dtype = torch.float32, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    pixels = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, pixels, 4, 16, generator=g, dtype=dtype)
    locations = torch.rand(2, pixels, 4, 4, 4, 2, generator=g, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(2, pixels, 4, 4, 4, generator=g, dtype=dtype)
    return value, SHAPES, locations, weights


@pytest.fixture
def threads() -> Iterator[None]:
    """Set the number of threads torch would use; put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_does_not_change_one_bit(threads, monkeypatch, dtype):
    monkeypatch.setattr(cpu, "WORK_PER_THREAD", 1)
    value, shapes, locations, weights = arguments(dtype)
    grad = torch.randn(*locations.shape[:2], 64, dtype=dtype)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(
            (
                cpu.forward(value, shapes, locations, weights),
                *cpu.backward(grad, value, shapes, locations, weights),
            )
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_calls_from_many_threads_do_not_disturb_each_other(threads, monkeypatch):
    monkeypatch.setattr(cpu, "WORK_PER_THREAD", 1)
    threads(2)
    cases = [arguments(seed=seed) for seed in range(4)]
    expected = [reference.ms_deform_attn(*case) for case in cases]
    got: dict[int, list[torch.Tensor]] = {}

    def work(index: int) -> None:
        got[index] = [cpu.forward(*cases[index]) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, expectation in enumerate(expected):
        for result in got[index]:
            torch.testing.assert_close(result, expectation, atol=1e-4, rtol=1e-4)


def test_an_unaligned_tensor_is_taken():
    value, shapes, locations, weights = arguments()
    storage = bytearray(value.numel() * 4 + 1)
    odd = torch.frombuffer(storage, dtype=torch.uint8)[1:].view(-1)
    odd.copy_(value.flatten().view(torch.uint8))
    array = torch.frombuffer(storage, dtype=torch.float32, offset=1).view(value.shape)
    assert array.data_ptr() % 4
    assert torch.equal(
        cpu.forward(array, shapes, locations, weights),
        cpu.forward(value, shapes, locations, weights),
    )


def test_a_switched_off_compiler_is_a_reason(monkeypatch):
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert cpu.missing.__wrapped__() == "NUMBA_DISABLE_JIT is set"


def test_a_missing_numba_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert "numba cannot be imported" in cpu.missing.__wrapped__()


def test_importing_compiles_nothing():
    lines = "import sys, ops; print('numba' in sys.modules)"
    out, errors = start_python(lines).communicate(timeout=300)
    assert out.strip() == "False", errors


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch, caplog):
    import numba.core.dispatcher

    def refuse(self):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(cpu, "_ready", {})
    monkeypatch.setattr(numba.core.dispatcher.Dispatcher, "enable_caching", refuse)
    case = arguments()
    with caplog.at_level(logging.WARNING):
        out = cpu.forward(*case)
    torch.testing.assert_close(out, reference.ms_deform_attn(*case), atol=1e-4, rtol=1e-4)
    assert "no locator available" in caplog.text


CALL = """
import torch
from ops import ms_deform_attn, reference
g = torch.Generator().manual_seed(0)
inputs = torch.randn(1, 20, 2, 8, generator=g), torch.rand(1, 3, 2, 1, 4, 2, generator=g)
for dtype in {dtypes}:
    value, locations = (t.to(dtype) for t in inputs)
    arguments = value, [(4, 5)], locations, torch.ones(1, 3, 2, 1, 4, dtype=dtype)
    torch.testing.assert_close(ms_deform_attn(*arguments), reference.ms_deform_attn(*arguments))
print("equal")
"""


@pytest.mark.slow
def test_processes_that_start_together_on_an_empty_cache_all_get_it_right(tmp_path):
    # Two precisions of one kernel are what could overwrite each other. The third process comes
    # later and reads what the two have left.
    rounds = [["(torch.float32,)", "(torch.float64,)"], ["(torch.float64, torch.float32)"]]
    for orders in rounds:
        started = [
            start_python(CALL.format(dtypes=order), NUMBA_CACHE_DIR=str(tmp_path))
            for order in orders
        ]
        for process in started:
            out, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            assert out.strip() == "equal"
    assert len(list(tmp_path.rglob("*.nbi"))) == 2


BITS = """
import hashlib, torch
from ops import cpu
g = torch.Generator().manual_seed(0)
shapes = [(16, 24), (8, 12), (4, 6), (2, 3)]
value, grad = torch.randn(2, 510, 2, 16, generator=g), torch.randn(2, 510, 32, generator=g)
locations = 1.2 * torch.rand(2, 510, 2, 4, 4, 2, generator=g) - 0.1
weights = torch.rand(2, 510, 2, 4, 4, generator=g)
results = cpu.forward(value, shapes, locations, weights), *cpu.backward(
    grad, value, shapes, locations, weights
)
print(hashlib.md5(b"".join(r.numpy().tobytes() for r in results)).hexdigest())
"""


@pytest.mark.slow
def test_a_kernel_just_compiled_and_one_from_the_cache_give_the_same_bits(tmp_path):
    answers = []
    for _ in range(2):
        out, errors = start_python(BITS, NUMBA_CACHE_DIR=str(tmp_path)).communicate(timeout=300)
        assert len(out.strip()) == 32, errors
        answers.append(out)
    assert answers[0] == answers[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_computes_with_threads_of_its_own(threads, monkeypatch):
    monkeypatch.setattr(cpu, "WORK_PER_THREAD", 1)
    threads(2)
    case = arguments()
    expected = cpu.forward(*case)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        answers.put(bool(torch.equal(cpu.forward(*case), expected)))

    # torch's own pool, like any OpenMP pool, must not be entered in the child: `equal` is serial.
    process = context.Process(target=child)
    process.start()
    process.join(60)
    alive = process.is_alive()
    if alive:
        process.kill()
    assert not alive
    assert process.exitcode == 0
    assert answers.get() is True


def start_python(lines: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", lines],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
