"""The kernels for masks: compiled for every architecture, run on the processor, and on a device."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from idol.detection import gpu_masks
from idol.masks import rle
from ops import mask_bits, nvrtc
from tests.ops.compiler_report import resources

COMPILER = shutil.which("g++") or shutil.which("clang++")
EMULATION = Path(__file__).with_name("emulation.h")

ENTRY = """
static void** given;
template <typename T> T* pointer(int k) { return (T*)given[k]; }
static int number(int k) { return *(int*)given[k]; }
extern "C" void emulate_pack(const int* grid, void** arguments) {
  given = arguments;
  emulation::run(grid, 256, [] {
    pack(pointer<float>(0), pointer<unsigned>(1), number(2), number(3), number(4));
  });
}
extern "C" void emulate_shared_pixels(const int* grid, void** arguments) {
  given = arguments;
  emulation::run(grid, 256, [] {
    shared_pixels(pointer<unsigned>(0), pointer<int>(1), pointer<int>(2), pointer<int>(3),
                  number(4), number(5));
  });
}
extern "C" void emulate_resize(const int* grid, void** arguments) {
  given = arguments;
  emulation::run(grid, 256, [] {
    resize(pointer<float>(0), pointer<int>(1), pointer<float>(2), pointer<int>(3),
           pointer<float>(4), pointer<unsigned>(5), number(6), number(7), number(8), number(9),
           number(10));
  });
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    if COMPILER is None:
        pytest.skip("needs a C++ compiler, g++ or clang++")
    folder = tmp_path_factory.mktemp("masks")
    source, made = folder / "masks.cpp", folder / "masks.so"
    source.write_text(mask_bits.SOURCE.read_text() + ENTRY)
    command = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    command += ["-include", str(EMULATION), str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


@pytest.fixture
def emulated(library, monkeypatch) -> None:
    def launch(name, grid, logits, tensors, numbers):
        integers = [ctypes.c_int(number) for number in numbers]
        pointers = [t.data_ptr() for t in tensors] + [ctypes.addressof(i) for i in integers]
        function = getattr(library, f"emulate_{name}")
        function((ctypes.c_int * 3)(*grid), (ctypes.c_void_p * len(pointers))(*pointers))

    monkeypatch.setattr(mask_bits, "_launch", launch)


def pictures(bits, height):
    """(n, W, words) int32 → (n, H, W) bool."""
    numbers = bits.long() & 0xFFFFFFFF
    each = (numbers[..., None] >> torch.arange(32)) & 1
    return each.flatten(2)[:, :, :height].transpose(1, 2).bool()


def reading(length, output):
    """Neighbours and shares of an axis stretched to another length."""
    places = torch.linspace(0, length - 1, output)
    low = places.floor().int()
    return low, places - low


def stretched(logits, rows, columns):
    (top, down), (left, right) = rows, columns
    low = (top.long() + 1).clamp(max=logits.shape[1] - 1)
    after = (left.long() + 1).clamp(max=logits.shape[2] - 1)
    above = logits[:, top.long()][:, :, left.long()] * (1 - right)
    above = above + logits[:, top.long()][:, :, after] * right
    below = logits[:, low][:, :, left.long()] * (1 - right) + logits[:, low][:, :, after] * right
    return above * (1 - down[:, None]) + below * down[:, None]


@pytest.mark.parametrize("counts", [[3], [2, 0, 4], [1, 1]])
@pytest.mark.parametrize("size", [(9, 13), (4, 8), (1, 1)])
def test_shared_pixels_are_those_of_the_masks(emulated, counts, size):
    torch.manual_seed(0)
    logits = torch.randn(sum(counts), *size)
    got = mask_bits.shared_pixels(logits, counts)
    start = 0
    for count in counts:
        flat = (logits[start : start + count] > 0).flatten(1).int()
        assert torch.equal(got[start : start + count, :count], flat @ flat.T)
        start += count


@pytest.mark.parametrize("size", [(33, 20), (64, 7), (1, 1), (40, 41)])
def test_resized_masks_are_those_of_bilinear_interpolation(emulated, size):
    torch.manual_seed(1)
    logits = torch.randn(3, 6, 9)
    rows, columns = reading(6, size[0]), reading(9, size[1])
    bits = mask_bits.resize(logits, rows, columns)
    right = stretched(logits, rows, columns)
    decided = right.abs() > 1e-5
    assert torch.equal(pictures(bits, size[0])[decided], right[decided] > 0)
    # What is beyond the last row is background.
    assert not pictures(bits, bits.shape[2] * 32)[:, size[0] :].any()


@pytest.mark.parametrize("method", ["released", "smooth"])
def test_masks_that_come_as_bits_are_those_of_the_processor(emulated, method):
    pytest.importorskip("numba")
    torch.manual_seed(3)
    logits = torch.nn.functional.avg_pool2d(torch.randn(5, 14, 18), 3, 1)
    sizes = [((45, 60), (90, 121))] * 2 + [((48, 64), (25, 30))]
    overlaps, strings = gpu_masks._by_bits(logits, [2, 1, 2], sizes, method)
    right_overlaps, right = gpu_masks.from_logits(logits, [2, 1, 2], sizes, method)
    for a, b in zip(overlaps, right_overlaps, strict=True):
        assert torch.equal(a, b)
    for a, b, (_, size) in zip(strings, right, sizes, strict=True):
        # At a tie the rounding of the last bit decides.
        assert (rle.decode_masks(a, size) != rle.decode_masks(b, size)).mean() < 1e-3


def test_no_masks_ask_for_no_kernel():
    assert mask_bits.shared_pixels(torch.zeros(0, 4, 4), [0, 0]).shape == (0, 0)
    assert mask_bits.resize(torch.zeros(0, 4, 4), reading(4, 5), reading(4, 6)).shape == (0, 6, 1)


def test_logits_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"convert them with \.float\(\)"):
        mask_bits.shared_pixels(torch.zeros(2, 4, 4, dtype=torch.float16), [2])


@pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))
@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
def test_the_kernels_compile_without_spills(architecture):
    code, report = nvrtc.compile_source(mask_bits.SOURCE.read_text(), f"sm_{architecture}")
    found = resources(report)
    assert code[:4] == b"\x7fELF"
    assert set(found) == set(mask_bits.KERNELS)
    assert all(one.spilled == one.stack == 0 for one in found.values())


@pytest.mark.gpu
def test_on_a_device_they_give_the_same():
    assert mask_bits.missing(0) is None
    torch.manual_seed(2)
    logits = torch.randn(7, 24, 40)
    counts, rows, columns = [3, 0, 4], reading(24, 97), reading(40, 161)
    shared = mask_bits.shared_pixels(logits.cuda(), counts).cpu()
    for start, count in ((0, 3), (3, 4)):
        flat = (logits[start : start + count] > 0).flatten(1).int()
        assert torch.equal(shared[start : start + count, :count], flat @ flat.T)
    bits = mask_bits.resize(
        logits.cuda(),
        (rows[0].cuda(), rows[1].cuda()),
        (columns[0].cuda(), columns[1].cuda()),
    ).cpu()
    right = stretched(logits, rows, columns)
    decided = right.abs() > 1e-5
    assert torch.equal(pictures(bits, 97)[decided], right[decided] > 0)
