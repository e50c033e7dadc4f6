"""The CUDA source itself, run on the processor thread by thread and compared with plain PyTorch."""

import ctypes
import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ops import cuda, reference
from ops.cuda import Specialisation

COMPILER = shutil.which("g++") or shutil.which("clang++")
EMULATION = Path(__file__).with_name("emulation.h")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler, g++ or clang++")

ENTRY = """
static void** given;
template <typename T> T* pointer(int k) { return (T*)given[k]; }
static int number(int k) { return *(int*)given[k]; }
extern "C" void emulate_forward(const int* blocks, void** arguments) {
  given = arguments;
  emulation::run(blocks, WARPS * 32, [] {
    forward(pointer<Value>(0), pointer<Query>(1), pointer<Query>(2), pointer<Anchor>(3),
            pointer<unsigned char>(4), pointer<Value>(5), number(6), number(7), number(8),
            number(9), NUMBERS_10);
  });
}
extern "C" void emulate_backward(const int* blocks, void** arguments) {
  given = arguments;
  emulation::run(blocks, WARPS * 32, [] {
    backward(pointer<Value>(0), pointer<Value>(1), pointer<Query>(2), pointer<Query>(3),
             pointer<Anchor>(4), pointer<unsigned char>(5), pointer<Real>(6), pointer<Sum>(7),
             pointer<Query>(8), pointer<Query>(9), pointer<Real>(10), number(11), number(12),
             number(13), number(14), NUMBERS_15);
  });
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Callable[..., Any]:
    """Specialisation -> its two kernels as a library of the processor, compiled once."""
    folder = tmp_path_factory.mktemp("emulated")
    libraries: dict[Specialisation, ctypes.CDLL] = {}

    def build(specialisation: Specialisation) -> ctypes.CDLL:
        if specialisation not in libraries:
            entry = ENTRY
            for first in (10, 15):
                sides = (f"number({first + k})" for k in range(2 * specialisation.levels))
                entry = entry.replace(f"NUMBERS_{first}", ", ".join(sides))
            source = folder / f"{len(libraries)}.cpp"
            library = source.with_suffix(".so")
            # The name of the kernels stays free for the entries' calls.
            text = specialisation.source().replace("#line 1", "")
            source.write_text(text + entry)
            command = [
                COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas",
                "-include", str(EMULATION), str(source), "-o", str(library),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            libraries[specialisation] = ctypes.CDLL(str(library))
        return libraries[specialisation]

    return build


def call(function, specialisation: Specialisation, tensors, numbers) -> None:
    _, _, of_a_warp, warps = specialisation.layout()
    images, _, heads, queries = numbers[:4]
    blocks = (ctypes.c_int * 3)(-(-queries // (of_a_warp * warps)), heads, images)
    integers = [ctypes.c_int(number) for number in numbers]
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    pointers += [ctypes.addressof(integer) for integer in integers]
    function(blocks, (ctypes.c_void_p * len(pointers))(*pointers))


def inputs(shapes, spec: Specialisation, *, images=2, heads=3, queries=5, seed=0):
    """value, places, weights, references, padding; many samples lie outside."""
    g = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    pixels = sum(h * w for h, w in shapes)
    rows = (images, queries, heads, spec.levels, spec.points)
    value, weights = random(images, pixels, heads, spec.channels), random(*rows)
    padding = references = None
    if spec.reference == 0:
        places = torch.rand(*rows, 2, generator=g, dtype=torch.float64) * 1.8 - 0.4
    else:
        places = 2 * random(*rows, 2)
        padding = torch.rand(images, pixels, generator=g) < 0.2
        size = (images, queries, spec.levels, spec.reference)
        references = torch.rand(*size, generator=g, dtype=torch.float64).to(spec.anchor)
    value, places, weights = value.to(spec.value), places.to(spec.query), weights.to(spec.query)
    return value, places, weights, references, padding


def expected(shapes, spec: Specialisation, arguments, grad):
    """The result and the gradients of all inputs in double precision, by plain PyTorch."""
    *tensors, padding = arguments
    leaves = [None if t is None else t.double().requires_grad_() for t in tensors]
    value, places, weights, references = leaves
    if references is None:
        out = reference.ms_deform_attn(value, shapes, places, weights)
        by = torch.autograd.grad(out, leaves[:3], grad.double())
    else:
        out = reference.ms_deform_attn_fused(value, shapes, references, places, weights, padding)
        by = torch.autograd.grad(out, leaves, grad.double())
    return out.detach(), by


def emulate(library, shapes, spec: Specialisation, arguments, grad):
    value, places, weights, references, padding = arguments
    images, pixels, heads, channels = value.shape
    queries = places.shape[1]
    out = torch.full((images, queries, heads * channels), torch.nan, dtype=value.dtype)
    numbers = [images, pixels, heads, queries, *(side for level in shapes for side in level)]
    tensors = (value, places, weights, references, padding, out)
    call(library.emulate_forward, spec, tensors, numbers)
    scale = torch.full((1,), 2.0**30, dtype=spec.real)
    sums = torch.zeros(value.shape, dtype=torch.int64 if spec.fixed_point else spec.real)
    by_places, by_weights = torch.full_like(places, torch.nan), torch.full_like(weights, torch.nan)
    by_references = None
    if references is not None:
        size = (images, queries, heads, spec.levels, spec.reference)
        by_references = torch.full(size, torch.nan, dtype=spec.real)
    tensors = (
        grad, value, places, weights, references, padding, scale, sums, by_places, by_weights,
        by_references,
    )  # fmt: skip
    call(library.emulate_backward, spec, tensors, numbers)
    if spec.fixed_point:
        sums = sums.double() / scale
    by = [sums, by_places, by_weights]
    return out, by if by_references is None else [*by, by_references.sum(2)]


SHAPES = [(5, 7), (3, 2), (1, 4), (1, 1)]
DOUBLE = Specialisation(
    levels=4,
    points=4,
    channels=32,
    value=torch.float64,
    query=torch.float64,
    anchor=torch.float64,
    reference=2,
)
SINGLE = dataclasses.replace(DOUBLE, value=torch.float32, query=torch.float32, anchor=torch.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": 2},
        {"reference": 4, "channels": 16, "points": 3},
        {"reference": 0, "channels": 24},  # twelve lanes an item: not a power of two
        {"reference": 4, "channels": 80, "points": 1},  # one item a warp, two pieces, a part idle
        {"reference": 2, "channels": 1, "points": 5},  # one lane an item
        {"reference": 0, "channels": 8, "fixed_point": True},
    ],
)
def test_the_source_in_double_precision_equals_plain_pytorch(compiled, changes):
    spec = dataclasses.replace(DOUBLE, **changes)
    arguments = inputs(SHAPES, spec)
    grad = torch.randn(2, 5, 3 * spec.channels, dtype=torch.float64)
    out, by = emulate(compiled(spec), SHAPES, spec, arguments, grad)
    right, by_right = expected(SHAPES, spec, arguments, grad)
    tolerance = 1e-6 if spec.fixed_point else 1e-11
    torch.testing.assert_close(out, right, atol=1e-11, rtol=1e-11)
    for a, b in zip(by, by_right, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("value", "query"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("load", [16, 8])
@pytest.mark.parametrize("kind", [0, 2])
def test_lower_precisions_round_inputs_and_results_only(compiled, value, query, kind, load):
    spec = dataclasses.replace(SINGLE, value=value, query=query, reference=kind, load=load)
    arguments = inputs(SHAPES, spec)
    grad = torch.randn(2, 5, 3 * spec.channels).to(value)
    out, by = emulate(compiled(spec), SHAPES, spec, arguments, grad)
    right, by_right = expected(SHAPES, spec, arguments, grad)
    assert out.dtype == value
    # Half a unit of the last place of the result's type, and float32 sums.
    torch.testing.assert_close(out.double(), right, rtol=torch.finfo(value).eps, atol=2e-5)
    dtypes = (torch.float32, query, query, torch.float32)
    for a, b, dtype in zip(by, by_right, dtypes, strict=False):
        rtol = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=1e-3)


def test_levels_without_pixels_and_a_padded_image_give_zeros(compiled):
    shapes = [(0, 3), (2, 3), (0, 0), (1, 2)]
    arguments = inputs(shapes, DOUBLE)
    arguments[4][1] = True
    grad = torch.randn(2, 5, 96, dtype=torch.float64)
    out, by = emulate(compiled(DOUBLE), shapes, DOUBLE, arguments, grad)
    right, by_right = expected(shapes, DOUBLE, arguments, grad)
    torch.testing.assert_close(out, right, atol=1e-11, rtol=1e-11)
    assert not out[1].any()
    for a, b in zip(by, by_right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_place_that_is_not_finite_shows_in_its_query_only(compiled, bad):
    value, places, weights, references, padding = inputs(SHAPES, DOUBLE)
    places[1, 2, 0, 1, 1, 0] = bad
    grad = torch.randn(2, 5, 96, dtype=torch.float64)
    arguments = (value, places, weights, references, padding)
    out, by = emulate(compiled(DOUBLE), SHAPES, DOUBLE, arguments, grad)
    assert out.isnan().any(-1).nonzero().tolist() == [[1, 2]]
    assert by[0].isfinite().all()
    assert by[1][1, 2, 0, 1, 1].isnan().all()


def test_places_far_outside_count_as_outside(compiled):
    spec = dataclasses.replace(SINGLE, reference=0)
    value, places, weights, _, _ = inputs(SHAPES, spec)
    arguments = (value, places * 1e30 + 1e30, weights, None, None)
    grad = torch.randn(2, 5, 96)
    out, by = emulate(compiled(spec), SHAPES, spec, arguments, grad)
    assert not out.any()
    assert not any(gradient.any() for gradient in by)


def test_values_under_the_padding_are_never_read(compiled):
    value, places, weights, references, padding = inputs(SHAPES, DOUBLE)
    value[padding] = torch.nan
    out, by = emulate(
        compiled(DOUBLE),
        SHAPES,
        DOUBLE,
        (value, places, weights, references, padding),
        torch.randn(2, 5, 96, dtype=torch.float64),
    )
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in by)
    assert not by[0][padding].any()


def test_the_integers_do_not_depend_on_the_order_of_additions(compiled):
    spec = dataclasses.replace(SINGLE, reference=0, fixed_point=True)
    arguments = inputs(SHAPES, spec, queries=9)
    grad = torch.randn(2, 9, 96)
    forwards = emulate(compiled(spec), SHAPES, spec, arguments, grad)[1][0]
    value, places, weights, _, _ = arguments
    backwards = emulate(
        compiled(spec), SHAPES, spec, (value, places.flip(1), weights.flip(1), None, None),
        grad.flip(1),
    )[1][0]  # fmt: skip
    assert torch.equal(forwards, backwards)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", [0, 2, 4])
def test_the_calls_around_the_kernels_equal_plain_pytorch(
    compiled, monkeypatch, kind, deterministic
):
    def launch(which, spec, tensors, value, queries, shapes):
        images, pixels, heads, _ = value.shape
        library = compiled(spec)
        function = library.emulate_backward if which else library.emulate_forward
        numbers = [images, pixels, heads, queries, *(side for level in shapes for side in level)]
        call(function, spec, tensors, numbers)

    monkeypatch.setattr(cuda, "launch", launch)
    spec = dataclasses.replace(SINGLE, reference=kind)
    value, places, weights, references, padding = inputs(SHAPES, spec)
    # Other strides than contiguous ones must not matter.
    value = value.transpose(1, 2).contiguous().transpose(1, 2)
    grad = torch.randn(2, 5, 3 * spec.channels)
    arguments = (value, places, weights, references, padding)
    right, by_right = expected(SHAPES, spec, arguments, grad)
    out = cuda.forward(value, SHAPES, places, weights, references, padding)
    torch.testing.assert_close(out.double(), right, atol=2e-5, rtol=1e-5)
    by_value, by_places, by_weights, by_references = cuda.backward(
        grad, value, SHAPES, places, weights, references, padding,
        by_references=references is not None, deterministic=deterministic,
    )  # fmt: skip
    if references is None:
        assert by_references is None
        got = (by_value, by_places, by_weights)
    else:
        got = (by_value, by_references, by_places, by_weights)
        by_right = (by_right[0], by_right[3], by_right[1], by_right[2])
    for a, b in zip(got, by_right, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=1e-3, rtol=1e-4)


def test_nothing_to_attend_launches_nothing(monkeypatch):
    def never(*args):
        raise AssertionError("there is nothing to compute")

    monkeypatch.setattr(cuda, "launch", never)
    value, weights = torch.ones(2, 0, 3, 8), torch.ones(2, 5, 3, 1, 4)
    places = torch.ones(2, 5, 3, 1, 4, 2)
    assert not cuda.forward(value, [(0, 4)], places, weights).any()
    grads = cuda.backward(torch.ones(2, 5, 24), value, [(0, 4)], places, weights)
    assert [g.shape for g in grads[:3]] == [value.shape, places.shape, weights.shape]
    assert not any(g.any() for g in grads[:3])
