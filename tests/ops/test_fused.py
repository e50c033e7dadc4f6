"""From references, offsets and logits: the operator, the public function and the module."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from ops import MSDeformAttn, backend, cpu, ms_deform_attn_fused, operators, reference, spread

Sizes = list[tuple[int, int]]
LEVELS: Sizes = [(5, 7), (3, 2), (1, 4), (1, 1)]


@pytest.fixture(autouse=True)
def _no_forced_backend(monkeypatch) -> None:
    monkeypatch.delenv("IDOL_MSDA_BACKEND", raising=False)
    backend.say_once.cache_clear()


def arguments(
    shapes: Sizes,
    kind: int,
    *,
    images: int = 2,
    queries: int = 3,
    heads: int = 2,
    channels: int = 4,
    points: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    one_reference: bool = False,
):
    """value, references, offsets, logits that require gradients, and a padding."""
    g = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    pixels = sum(h * w for h, w in shapes)
    rows = (images, queries, heads, len(shapes), points)
    first = 1 if one_reference else images
    references = torch.rand(first, queries, len(shapes), kind, generator=g, dtype=torch.float64)
    tensors = (random(images, pixels, heads, channels), references, 2 * random(*rows, 2))
    leaves = [t.to(dtype).requires_grad_() for t in (*tensors, random(*rows))]
    return (*leaves, torch.rand(images, pixels, generator=g) < 0.2)


def plain(shapes, value, references, offsets, logits, padding):
    return reference.ms_deform_attn_fused(value, shapes, references, offsets, logits, padding)


def ours(shapes, value, references, offsets, logits, padding):
    return ms_deform_attn_fused(value, shapes, references, offsets, logits, padding)


def operator(shapes, value, references, offsets, logits, padding):
    sizes = [side for level in shapes for side in level]
    return operators.attend_fused(value, sizes, references, offsets, logits, padding)


def with_gradients(function, shapes, inputs, grad):
    out = function(shapes, *inputs)
    return (out.detach(), *torch.autograd.grad(out, inputs[:4], grad))


@settings(deadline=None, max_examples=50)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4),
    kind=st.sampled_from([2, 4]),
    images=st.integers(1, 3),
    queries=st.integers(1, 5),
    heads=st.integers(1, 4),
    channels=st.sampled_from([1, 8, 20]),
    points=st.integers(1, 5),
    padded=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_operator_and_function_equal_plain_pytorch(
    shapes, kind, images, queries, heads, channels, points, padded, seed
):
    *leaves, padding = arguments(
        shapes, kind, images=images, queries=queries, heads=heads, channels=channels,
        points=points, seed=seed,
    )  # fmt: skip
    inputs = (*leaves, padding if padded else None)
    grad = torch.randn(images, queries, heads * channels, dtype=torch.float64)
    right = with_gradients(plain, shapes, inputs, grad)
    for function in (ours, operator):
        for a, b in zip(with_gradients(function, shapes, inputs, grad), right, strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("kind", [2, 4])
def test_the_operator_keeps_the_rules_of_torch_library(kind):
    value, references, offsets, logits, padding = arguments(LEVELS, kind)
    sizes = [side for level in LEVELS for side in level]
    for mask in (padding, None):
        torch.library.opcheck(
            torch.ops.idol.ms_deform_attn_fused.default,
            (value, sizes, references, offsets, logits, mask),
        )
    grad = torch.randn(2, 3, 8, dtype=torch.float64)
    inputs = [t.detach() for t in (value, references, offsets, logits)]
    for wanted in (True, False):
        torch.library.opcheck(
            torch.ops.idol.ms_deform_attn_fused_backward.default,
            (grad, inputs[0], sizes, *inputs[1:], padding, wanted),
        )


@pytest.mark.parametrize("function", [ours, operator])
@pytest.mark.parametrize("kind", [2, 4])
def test_gradients_are_those_of_finite_differences(kind, function):
    shapes = [(3, 4), (2, 1)]
    *leaves, padding = arguments(shapes, kind, images=1, queries=2, channels=3)
    assert torch.autograd.gradcheck(lambda *t: function(shapes, *t, padding), leaves)


@pytest.mark.parametrize("kind", [2, 4])
def test_one_row_of_references_serves_all_images(kind):
    value, references, offsets, logits, padding = arguments(LEVELS, kind, one_reference=True)
    grad = torch.randn(2, 3, 8, dtype=torch.float64)
    inputs = (value, references, offsets, logits, padding)
    got = with_gradients(ours, LEVELS, inputs, grad)
    for a, b in zip(got, with_gradients(plain, LEVELS, inputs, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_spread_references_and_a_padding_of_one_row_change_nothing():
    value, references, offsets, logits, padding = arguments(LEVELS, 2, one_reference=True)
    padding = padding[:1]
    right = ours(LEVELS, value, references, offsets, logits, padding.expand(2, -1))
    laid_out = spread(references, 2, 2)
    assert laid_out.shape == (1, 3, 2, 4, 2, 2)
    assert torch.equal(ours(LEVELS, value, laid_out, offsets, logits, padding), right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_much_as_plain_pytorch_in_it(dtype):
    *leaves, padding = arguments(LEVELS, 2, channels=16, queries=40)
    exact = ours(LEVELS, *(t.detach() for t in leaves), padding)
    halves = [t.detach().to(dtype) for t in leaves]
    got = ours(LEVELS, *halves, padding)
    assert got.dtype == dtype
    allowed = (plain(LEVELS, *halves, padding).double() - exact).abs()
    wrong = (got.double() - exact).abs()
    assert wrong.max() <= 2 * allowed.max()
    assert wrong.mean() <= 2 * allowed.mean()


def test_wrong_arguments_say_the_rule_and_what_came():
    value, references, offsets, logits, padding = (t.detach() for t in arguments(LEVELS, 2))
    cases = [
        (dict(references=references[:, :2]), ValueError, r"references must be \(N or 1, Q, L, 2\)"),
        (dict(references=references[..., :1]), ValueError, "references must be"),
        (dict(offsets=offsets[..., :1]), ValueError, r"offsets must be \(N, Q, M, L, P, 2\)"),
        (dict(logits=logits[:, :2]), ValueError, r"logits must be .* as in offsets"),
        (dict(padding=padding.float()), TypeError, "padding must be boolean"),
        (dict(padding=padding[:, 1:]), ValueError, r"padding must be \(N or 1, S\)"),
        (dict(padding=padding.to("meta")), ValueError, "padding must be on the device of value"),
        (dict(offsets=offsets.long()), TypeError, "offsets must be a floating-point tensor"),
    ]
    for changes, kind, message in cases:
        given_ = dict(
            value=value, shapes=LEVELS, references=references, offsets=offsets, logits=logits,
            padding=padding,
        ) | changes  # fmt: skip
        with pytest.raises(kind, match=message):
            ms_deform_attn_fused(**given_)
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 30 for 8"):
        MSDeformAttn(30, 8)


def module_and_inputs(dtype: torch.dtype = torch.float32):
    torch.manual_seed(3)
    module = MSDeformAttn(32, 4, 2, len(LEVELS)).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    pixels = sum(h * w for h, w in LEVELS)
    query, tokens = torch.randn(2, 6, 32, dtype=dtype), torch.randn(2, pixels, 32, dtype=dtype)
    references = torch.rand(2, 6, len(LEVELS), 4, dtype=dtype)
    padding = torch.rand(2, pixels) < 0.2
    return module, (query, references, tokens, LEVELS, padding)


def test_the_module_starts_with_every_head_looking_its_own_way():
    module = MSDeformAttn(64, 8, 4, 3)
    bias = module.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    assert torch.equal(bias[:, 0], bias[:, 2])
    torch.testing.assert_close(bias[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
    torch.testing.assert_close(bias[1, 0, 1], torch.tensor([2.0, 2.0]))
    assert not module.attention_weights.weight.any()


def test_the_module_compiles_as_one_graph_forwards_and_backwards():
    module, inputs = module_and_inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    out, right = compiled(*inputs), module(*inputs)
    torch.testing.assert_close(out, right)
    got = torch.autograd.grad(out.square().sum(), list(module.parameters()))
    for a, b in zip(
        got, torch.autograd.grad(right.square().sum(), list(module.parameters())), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_module_exports_and_the_program_gives_the_same():
    module, (query, references, tokens, _, padding) = module_and_inputs()

    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, query, references, tokens, padding):
            return self.module(query, references, tokens, LEVELS, padding)

    program = torch.export.export(Fixed(), (query, references, tokens, padding))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "idol.ms_deform_attn.default" in names
    torch.testing.assert_close(
        program.module()(query, references, tokens, padding),
        module(query, references, tokens, LEVELS, padding),
    )


def test_recomputed_activations_have_the_same_gradients():
    module, inputs = module_and_inputs(torch.float64)
    parameters = list(module.parameters())
    right = torch.autograd.grad(module(*inputs).square().sum(), parameters)
    again = copy.deepcopy(module)
    out = checkpoint(again, *inputs, use_reentrant=False)
    for a, b in zip(
        torch.autograd.grad(out.square().sum(), list(again.parameters())), right, strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_locations_keep_single_precision(monkeypatch, dtype):
    module, inputs = module_and_inputs()
    seen = []
    kernel = cpu.forward

    def noted(value, shapes, locations, weights):
        seen.append((locations.dtype, weights.dtype))
        return kernel(value, shapes, locations, weights)

    monkeypatch.setattr(cpu, "forward", noted)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        out = module(*inputs)
    assert seen == [(torch.float32, torch.float32)]
    torch.testing.assert_close(out.float(), module(*inputs), atol=0.05, rtol=0.05)
