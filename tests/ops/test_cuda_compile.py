"""Every specialisation compiles to machine code, without spills, on a machine without a GPU."""

import dataclasses
import multiprocessing
import os

import pytest
import torch

from ops import cuda, nvrtc
from ops.cuda import Specialisation
from ops.kernel_cache import KernelCache
from tests.ops.compiler_report import Resources, resources

pytestmark = pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))

ARCHITECTURES = (80, 90, 100, 120)
HALVES = (torch.bfloat16, torch.float16)

BASE = Specialisation(
    levels=4, points=4, channels=32, value=torch.float32, query=torch.float32, reference=2
)


def compiled(specialisation: Specialisation, architecture: int) -> dict[str, Resources]:
    code, report = nvrtc.compile_source(specialisation.source(), f"sm_{architecture}")
    assert code[:4] == b"\x7fELF"
    found = resources(report)
    assert set(found) == {"forward", "backward"}, report
    return found


def of_backward(forward: Specialisation) -> Specialisation:
    return dataclasses.replace(forward, load=min(4 * forward.value.itemsize, 16))


def usual(value: torch.dtype, reference: int, channels: int = 32) -> Specialisation:
    """As the network calls: what a query brings has the type of the value, references float32."""
    query = torch.float32 if reference == 0 else value
    return dataclasses.replace(
        BASE, value=value, query=query, reference=reference, channels=channels
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize("value", [torch.float32, torch.float16, torch.bfloat16])
def test_the_networks_kernels_keep_everything_in_registers(value, reference, architecture):
    usually = usual(value, reference)
    found = compiled(usually, architecture) | {
        f"{name}, of the backward": one
        for name, one in compiled(of_backward(usually), architecture).items()
    }
    for one in found.values():
        assert (one.stack, one.spilled) == (0, 0)
    # Of the 65,536 registers of a multiprocessor: eight blocks of four warps, or five where half
    # precision has to be converted, enough to hide the gathers.
    most = 96 if value in HALVES else 64
    assert max(one.registers for one in found.values()) <= most


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 8},
        {"channels": 16, "points": 8},
        {"channels": 64},
        {"channels": 80, "levels": 3},
        {"channels": 128, "levels": 1},
        {"channels": 32, "levels": 5, "points": 1},
        {"channels": 256},
        {"levels": 8, "points": 8},
        {"channels": 33},
        {"fixed_point": True},
        {"value": torch.float64, "query": torch.float64, "anchor": torch.float64},
        {"value": torch.bfloat16, "query": torch.float32, "fixed_point": True, "reference": 4},
    ],
    ids=str,
)
def test_other_sizes_and_types_compile_without_spills(changes, architecture):
    found = compiled(dataclasses.replace(BASE, **changes), architecture)
    assert found["forward"].spilled == 0
    assert found["backward"].spilled == 0


def test_an_architecture_that_the_compiler_does_not_know_takes_the_next_older_ones_code():
    architecture, kind = nvrtc.target_of((9, 0))
    assert (architecture, kind) == ("sm_90", "cubin")
    newest = max(nvrtc.known_architectures())
    assert nvrtc.target_of((99, 0)) == (f"compute_{newest}", "ptx")


def test_a_device_older_than_the_kernels_is_said_in_one_line():
    with pytest.raises(nvrtc.CannotCompile, match=r"capability 3\.5"):
        nvrtc.target_of((3, 5))


def test_more_samples_than_shared_memory_holds_is_said():
    with pytest.raises(nvrtc.CannotCompile, match="do not fit into shared memory"):
        dataclasses.replace(BASE, levels=40, points=50).layout()


def test_what_the_compiler_says_of_broken_source_is_in_the_error():
    with pytest.raises(nvrtc.CannotCompile, match=r"identifier .*nonsense.* is undefined"):
        nvrtc.compile_source('extern "C" __global__ void f() { nonsense(); }', "sm_90")


def test_layouts_use_whole_wide_loads_and_whole_warps():
    assert usual(torch.float32, 2).layout() == (4, 8, 4, 4)
    assert usual(torch.bfloat16, 2).layout() == (8, 4, 8, 4)
    assert usual(torch.bfloat16, 2, channels=36).layout()[0] == 4


def ask_for_code(folder, log, barrier) -> None:
    compile_source = nvrtc.compile_source

    def noted(*args):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return compile_source(*args)

    nvrtc.compile_source = noted
    barrier.wait()
    code, kind = nvrtc.machine_code(cuda.NAME, BASE.source(), (9, 0), KernelCache(folder))
    assert (code[:4], kind) == (b"\x7fELF", "cubin")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_start_together_compile_each_kernel_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    processes = [
        context.Process(target=ask_for_code, args=(tmp_path / "cache", tmp_path / "log", barrier))
        for _ in range(6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_the_cache_knows_kernels_apart_by_source_architecture_and_specialisation(tmp_path):
    cache = KernelCache(tmp_path)
    for capability in ((8, 0), (9, 0)):
        for spec in (BASE, dataclasses.replace(BASE, fixed_point=True)):
            nvrtc.machine_code(cuda.NAME, spec.source(), capability, cache)
            nvrtc.machine_code(cuda.NAME, spec.source(), capability, KernelCache(tmp_path))
    names = [path.name for path in tmp_path.glob("*.cubin")]
    assert len(names) == 4
    assert sum("sm_80" in name for name in names) == 2
