"""The CUDA kernels on a device: equal to plain PyTorch, in graphs, and the same in every run."""

import dataclasses

import numpy as np
import pytest
import torch

from ops import MSDeformAttn, backend, cuda, ms_deform_attn, ms_deform_attn_fused, nvrtc, reference
from tests.ops.test_fused import LEVELS, arguments

pytestmark = pytest.mark.gpu

ENCODER = [(12, 20), (6, 10), (3, 5), (2, 3)]


@pytest.fixture(autouse=True)
def _forced(monkeypatch) -> None:
    """A fallback would make these tests pass without the kernels."""
    monkeypatch.setenv("IDOL_MSDA_BACKEND", "cuda")
    backend.say_once.cache_clear()


def on_device(tensors, dtype):
    moved = [t.detach().cuda().to(dtype).requires_grad_() for t in tensors[:4]]
    return (*moved, tensors[4].cuda())


def with_gradients(function, shapes, inputs, grad):
    value, references, offsets, logits, padding = inputs
    out = function(value, shapes, references, offsets, logits, padding)
    return (out.detach(), *torch.autograd.grad(out, inputs[:4], grad.to(out.dtype)))


@pytest.mark.parametrize("case", ["small", "r50like", "onelevel"])
def test_the_kernels_equal_the_released_code(shared, case):
    with np.load(shared / "reference" / "oracle" / "msda.npz") as oracle:
        stored = {
            key.split("/")[1]: torch.from_numpy(oracle[key])
            for key in oracle.files
            if key.startswith(f"{case}/")
        }
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        inputs = [
            stored[name].cuda().to(dtype).requires_grad_() for name in ("value", "loc", "weight")
        ]
        out = ms_deform_attn(inputs[0], stored["shapes"].tolist(), inputs[1], inputs[2])
        gradients = torch.autograd.grad(out, inputs, stored["grad_out"].cuda().to(dtype))
        scale = 1 if dtype == torch.float64 else 10
        torch.testing.assert_close(out.cpu().double(), stored["out"], atol=tolerance, rtol=0)
        for name, gradient in zip(
            ("grad_value", "grad_loc", "grad_weight"), gradients, strict=True
        ):
            right = stored[name]
            limit = tolerance * scale * max(1.0, float(right.abs().max()))
            torch.testing.assert_close(gradient.cpu().double(), right, atol=limit, rtol=0, msg=name)


@pytest.mark.parametrize("kind", [2, 4])
@pytest.mark.parametrize(
    "changes", [{}, {"channels": 33}, {"channels": 80}, {"points": 7}], ids=str
)
def test_the_fused_kernel_equals_plain_pytorch_in_double_precision(kind, changes):
    sizes = {"channels": 32, "queries": 50, "heads": 8, "points": 4} | changes
    tensors = arguments(LEVELS, kind, **sizes)
    grad = torch.randn(2, 50, 8 * sizes["channels"], dtype=torch.float64)
    right = with_gradients(reference.ms_deform_attn_fused, LEVELS, tensors, grad)
    got = with_gradients(
        ms_deform_attn_fused, LEVELS, on_device(tensors, torch.float64), grad.cuda()
    )
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precisions_err_at_most_twice_as_much_as_plain_pytorch_in_them(kind, dtype):
    tensors = arguments(ENCODER, kind, channels=32, queries=300, heads=8, points=4)
    grad = torch.randn(2, 300, 256, dtype=torch.float64)
    right = with_gradients(reference.ms_deform_attn_fused, ENCODER, tensors, grad)
    inputs = on_device(tensors, dtype)
    got = with_gradients(ms_deform_attn_fused, ENCODER, inputs, grad.cuda())
    plain = with_gradients(reference.ms_deform_attn_fused, ENCODER, inputs, grad.cuda())
    for a, b, exact in zip(got, plain, right, strict=True):
        wrong = (a.cpu().double() - exact).abs()
        allowed = (b.cpu().double() - exact).abs()
        assert wrong.mean() <= 2 * allowed.mean()


def test_levels_without_pixels_and_nothing_to_do():
    shapes = [(0, 3), (2, 3), (0, 0), (1, 2)]
    tensors = arguments(shapes, 2, channels=32)
    grad = torch.randn(2, 3, 64, dtype=torch.float64)
    right = with_gradients(reference.ms_deform_attn_fused, shapes, tensors, grad)
    got = with_gradients(
        ms_deform_attn_fused, shapes, on_device(tensors, torch.float64), grad.cuda()
    )
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-10, rtol=1e-10)
    empty = [t[:, :0] for t in on_device(tensors, torch.float32)[1:4]]
    value = torch.randn(2, 8, 2, 32, device="cuda")
    assert ms_deform_attn_fused(value, shapes, *empty).shape == (2, 0, 64)


def test_deterministic_gradients_are_the_same_bits_in_every_run():
    tensors = arguments(ENCODER, 2, channels=32, queries=318, heads=8, points=4)
    inputs = on_device(tensors, torch.float32)
    grad = torch.randn(2, 318, 256, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        runs = [with_gradients(ms_deform_attn_fused, ENCODER, inputs, grad)[1] for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(runs[0], run) for run in runs[1:])
    usual = with_gradients(ms_deform_attn_fused, ENCODER, inputs, grad)[1]
    torch.testing.assert_close(runs[0], usual, atol=1e-4, rtol=1e-4)


def module_and_inputs():
    torch.manual_seed(0)
    module = MSDeformAttn(256, 8, 4, 4).cuda()
    pixels = sum(h * w for h, w in ENCODER)
    tokens = torch.randn(1, pixels, 256, device="cuda")
    references = torch.rand(1, pixels, 4, 2, device="cuda")
    return module, (tokens, references, tokens, ENCODER, None)


def test_a_cuda_graph_replays_the_kernel_on_new_inputs():
    module, inputs = module_and_inputs()
    with torch.no_grad():
        module(*inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            module(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(*inputs)
        inputs[0].copy_(torch.randn_like(inputs[0]))
        graph.replay()
        torch.testing.assert_close(out, module(*inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_module_compiles_as_one_graph():
    module, inputs = module_and_inputs()
    compiled = torch.compile(module, fullgraph=True)
    out, right = compiled(*inputs), module(*inputs)
    torch.testing.assert_close(out, right, atol=1e-4, rtol=1e-4)
    parameters = list(module.parameters())
    for a, b in zip(
        torch.autograd.grad(out.square().sum(), parameters),
        torch.autograd.grad(right.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-3)


def test_the_kernel_runs_on_the_current_stream():
    module, inputs = module_and_inputs()
    with torch.no_grad():
        right = module(*inputs)
        stream = torch.cuda.Stream()
        tokens = torch.empty_like(inputs[0])
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            tokens.copy_(inputs[0])
            out = module(tokens, inputs[1], tokens, *inputs[3:])
        stream.synchronize()
    assert torch.equal(out, right)


def test_the_operator_keeps_the_rules_of_torch_library_on_the_device():
    value, references, offsets, logits, padding = on_device(
        arguments(LEVELS, 4, channels=8), torch.float32
    )
    sizes = [side for level in LEVELS for side in level]
    torch.library.opcheck(
        torch.ops.idol.ms_deform_attn_fused.default,
        (value, sizes, references, offsets, logits, padding),
    )


def test_without_the_compiler_plain_pytorch_is_used_and_said(monkeypatch, caplog):
    monkeypatch.delenv("IDOL_MSDA_BACKEND")
    monkeypatch.setattr(nvrtc, "missing", lambda: "NVRTC cannot be loaded")
    inputs = on_device(arguments(LEVELS, 2, channels=8), torch.float32)
    value, references, offsets, logits, padding = inputs
    out = ms_deform_attn_fused(value, LEVELS, references, offsets, logits, padding)
    right = reference.ms_deform_attn_fused(value, LEVELS, references, offsets, logits, padding)
    torch.testing.assert_close(out, right)
    assert "NVRTC cannot be loaded" in caplog.text


def test_every_variant_that_is_measured_gives_the_same_numbers():
    tensors = on_device(arguments(ENCODER, 2, channels=32, queries=318, heads=8), torch.float32)
    value, references, offsets, logits, _ = (t.detach() for t in tensors)
    right = cuda.forward(value, ENCODER, offsets, logits, references)
    plain = cuda.specialisation_of(value, offsets, references)
    for changes in ({"blocks": 4}, {"warps": 2}, {"warps": 8}, {"unroll": 1}):
        out = torch.full_like(right, torch.nan)
        spec = dataclasses.replace(plain, **changes)
        cuda.launch(0, spec, (value, offsets, logits, references, None, out), value, 318, ENCODER)
        torch.testing.assert_close(out, right, atol=1e-5, rtol=1e-5)
