import logging
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import ops
from ops import backend, cpu, ms_deform_attn, reference

door = sys.modules["ops.ms_deform_attn"]

Sizes = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def _no_forced_backend(monkeypatch) -> None:
    monkeypatch.delenv("IDOL_MSDA_BACKEND", raising=False)
    backend.say_once.cache_clear()


def arguments(
    shapes: Sizes,
    *,
    images: int = 2,
    queries: int = 3,
    heads: int = 2,
    channels: int = 4,
    points: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random value, locations (a good part of them outside the picture) and weights."""
    g = torch.Generator().manual_seed(seed)
    pixels = sum(h * w for h, w in shapes)
    value = torch.randn(images, pixels, heads, channels, generator=g, dtype=torch.float64)
    rows = (images, queries, heads, len(shapes), points)
    locations = torch.rand(*rows, 2, generator=g, dtype=torch.float64) * 1.8 - 0.4
    weights = torch.rand(*rows, generator=g, dtype=torch.float64)
    return tuple(t.to(dtype).requires_grad_() for t in (value, locations, weights))


def with_gradients(function, shapes: Sizes, inputs, seed: int = 0):
    """The result and the gradients of all inputs, for a random gradient of the result."""
    out = function(inputs[0], shapes, inputs[1], inputs[2])
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, inputs, grad))


LEVELS = [(5, 7), (3, 2), (1, 4), (1, 1)]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("case", ["small", "r50like", "onelevel"])
def test_every_backend_equals_the_released_code(shared, monkeypatch, backend, case):
    monkeypatch.setenv("IDOL_MSDA_BACKEND", backend)
    with np.load(shared / "reference" / "oracle" / "msda.npz") as oracle:
        stored = {
            key.split("/")[1]: torch.from_numpy(oracle[key])
            for key in oracle.files
            if key.startswith(f"{case}/")
        }
    inputs = [stored[name].requires_grad_() for name in ("value", "loc", "weight")]
    out = ms_deform_attn(inputs[0], stored["shapes"].tolist(), inputs[1], inputs[2])
    gradients = torch.autograd.grad(out, inputs, stored["grad_out"])
    torch.testing.assert_close(out, stored["out"], atol=1e-10, rtol=0)
    for name, gradient in zip(("grad_value", "grad_loc", "grad_weight"), gradients, strict=True):
        torch.testing.assert_close(gradient, stored[name], atol=1e-10, rtol=0, msg=name)


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4),
    images=st.integers(1, 3),
    queries=st.integers(0, 5),
    heads=st.integers(1, 4),
    channels=st.sampled_from([1, 3, 8, 20, 40]),
    points=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_the_kernel_equals_plain_pytorch_in_double_precision(
    shapes, images, queries, heads, channels, points, seed
):
    inputs = arguments(
        shapes,
        images=images,
        queries=queries,
        heads=heads,
        channels=channels,
        points=points,
        seed=seed,
    )
    expected = with_gradients(reference.ms_deform_attn, shapes, inputs, seed)
    got = with_gradients(ms_deform_attn, shapes, inputs, seed)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("channels", [3, 8, 16, 20, 32])
def test_the_kernel_errs_at_most_twice_as_much_as_plain_pytorch_in_single_precision(channels):
    shapes = [(24, 32), (12, 16), (6, 8), (3, 4)]
    # Away from the borders of cells: there the location gradient jumps, and which side a rounded
    # location falls on is nobody's error.
    exact = list(arguments(shapes, queries=50, heads=4, channels=channels, points=4))
    sizes = torch.tensor([(w, h) for h, w in shapes]).double()[:, None]
    pixel = exact[1].detach() * sizes - 0.5
    pixel = pixel.floor() + (pixel - pixel.floor()).clamp(0.05, 0.95)
    exact[1] = ((pixel + 0.5) / sizes).requires_grad_()
    single = [t.detach().float().requires_grad_() for t in exact]
    truth = with_gradients(
        reference.ms_deform_attn, shapes, [t.detach().double().requires_grad_() for t in single]
    )
    plain = with_gradients(reference.ms_deform_attn, shapes, single)
    ours = with_gradients(ms_deform_attn, shapes, single)
    for a, b, t in zip(ours, plain, truth, strict=True):
        assert a.dtype == torch.float32
        allowed = 2 * (b - t).abs().max() + 1e-6 * t.abs().max()
        assert (a - t).abs().max() <= allowed


def test_gradients_are_those_of_finite_differences():
    shapes = [(3, 4), (2, 1)]
    value, locations, weights = arguments(shapes, images=1, queries=2, heads=2, channels=3)
    assert torch.autograd.gradcheck(
        lambda v, p, w: ms_deform_attn(v, shapes, p, w), (value, locations, weights)
    )


def test_the_operator_keeps_the_rules_of_torch_library():
    inputs = arguments(LEVELS)
    sizes = [side for level in LEVELS for side in level]
    torch.library.opcheck(
        torch.ops.idol.ms_deform_attn.default, (inputs[0], sizes, inputs[1], inputs[2])
    )
    plain = [t.detach() for t in inputs]
    grad = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.idol.ms_deform_attn_backward.default, (grad, plain[0], sizes, plain[1], plain[2])
    )


def test_who_watches_the_operators_of_torch_sees_it():
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    value, locations, weights = (t.detach().float() for t in arguments(LEVELS))
    with torch.no_grad():
        plain = ms_deform_attn(value, LEVELS, locations, weights)
        with Seen():
            watched = ms_deform_attn(value, LEVELS, locations, weights)
    assert "idol.ms_deform_attn.default" in names
    assert watched.equal(plain)


def test_exact_borders_of_cells_choose_the_same_cell_as_plain_pytorch():
    shapes = [(4, 8)]
    # Sixteenths and eighths are exact in binary: every location is a pixel's centre or corner.
    x, y = torch.meshgrid(torch.arange(-2, 19) / 16, torch.arange(-2, 11) / 8, indexing="ij")
    locations = torch.stack([x, y], -1).reshape(1, -1, 1, 1, 1, 2).requires_grad_()
    value = torch.randn(1, 32, 1, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.ones(locations.shape[:-1], requires_grad=True)
    inputs = (value, locations, weights)
    expected = with_gradients(reference.ms_deform_attn, shapes, inputs)
    got = with_gradients(ms_deform_attn, shapes, inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize(
    ("shapes", "images", "queries"), [(LEVELS, 2, 0), (LEVELS, 0, 3), ([(0, 3), (0, 0)], 2, 3)]
)
def test_nothing_to_attend_gives_zeros_and_zero_gradients(
    monkeypatch, backend, shapes, images, queries
):
    monkeypatch.setenv("IDOL_MSDA_BACKEND", backend)
    inputs = arguments(shapes, images=images, queries=queries)
    for result, like in zip(
        with_gradients(ms_deform_attn, shapes, inputs),
        (torch.empty(images, queries, 8), *inputs),
        strict=True,
    ):
        assert result.shape == like.shape
        assert not result.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_location_that_is_not_finite_shows_in_its_query_only(monkeypatch, backend, bad):
    monkeypatch.setenv("IDOL_MSDA_BACKEND", backend)
    value, locations, weights = arguments(LEVELS)
    locations = locations.detach().clone()
    locations[1, 2, 0, 1, 1, 0] = bad
    out = ms_deform_attn(value, LEVELS, locations, weights)
    wrong = torch.isnan(out).any(-1)
    assert wrong.nonzero().tolist() == [[1, 2]]


def test_far_locations_count_as_outside():
    value, locations, weights = arguments(LEVELS, dtype=torch.float32)
    far = locations.detach() * 1e30 + 1e30
    assert not ms_deform_attn(value, LEVELS, far, weights).any()


def test_strides_of_the_inputs_do_not_matter():
    inputs = arguments(LEVELS)
    strided = [
        t.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for t in inputs
    ]
    assert not strided[0].is_contiguous()
    for a, b in zip(
        with_gradients(ms_deform_attn, LEVELS, strided),
        with_gradients(ms_deform_attn, LEVELS, inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_an_expanded_gradient_is_taken():
    value, locations, weights = arguments(LEVELS)
    ms_deform_attn(value, LEVELS, locations, weights).sum().backward()
    expected = torch.autograd.grad(
        reference.ms_deform_attn(value, LEVELS, locations, weights).sum(), [value]
    )[0]
    torch.testing.assert_close(value.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_half_precision_values_are_computed_in_single_precision(monkeypatch, backend, dtype):
    monkeypatch.setenv("IDOL_MSDA_BACKEND", backend)
    value, locations, weights = (t.detach() for t in arguments(LEVELS, dtype=torch.float32))
    half = value.to(dtype).requires_grad_()
    out = ms_deform_attn(half, LEVELS, locations, weights)
    assert out.dtype == dtype
    exact = reference.ms_deform_attn(half.detach().float(), LEVELS, locations, weights)
    torch.testing.assert_close(out, exact.to(dtype))
    out.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype


def test_autocast_does_not_coarsen_it():
    value, locations, weights = arguments(LEVELS, dtype=torch.float32)
    expected = ms_deform_attn(value, LEVELS, locations, weights)
    with torch.autocast("cpu", torch.bfloat16):
        out = ms_deform_attn(value, LEVELS, locations, weights)
    torch.testing.assert_close(out, expected, atol=0, rtol=0)


def test_a_double_keeps_all_three_double():
    value, locations, weights = arguments(LEVELS)
    mixed = ms_deform_attn(value.float(), LEVELS, locations, weights.float())
    assert mixed.dtype == torch.float32
    exact = ms_deform_attn(value.float().double(), LEVELS, locations, weights.float().double())
    torch.testing.assert_close(mixed, exact.float(), atol=0, rtol=0)


def test_shapes_may_be_a_tensor_or_an_array():
    value, locations, weights = arguments(LEVELS)
    expected = ms_deform_attn(value, LEVELS, locations, weights)
    for shapes in (torch.tensor(LEVELS), np.array(LEVELS)):
        assert torch.equal(ms_deform_attn(value, shapes, locations, weights), expected)


def test_wrong_shapes_say_the_rule_and_what_came():
    value, locations, weights = (t.detach() for t in arguments(LEVELS))
    cases = [
        (value.flatten(2), LEVELS, locations, weights, r"value must be \(N, S, M, C\)"),
        (value, LEVELS[:3], locations, weights, "45 for shapes"),
        (value, [*LEVELS[:3], (1,)], locations, weights, "level 3 is"),
        (value, [*LEVELS[:3], (-1, -1)], locations, weights, "level 3 is"),
        (value, LEVELS, locations[..., 0], weights, r"locations must be \(N, Q, M, L, P, 2\)"),
        (value, LEVELS, locations[:, :, :1], weights, "N, M, L = 2, 2, 4"),
        (value[:1], LEVELS, locations, weights, "N, M, L = 1, 2, 4"),
        (value, LEVELS, locations, weights[:, :2], r"\(2, 3, 2, 4, 2\).*got \(2, 2, 2, 4, 2\)"),
    ]
    for v, shapes, p, w, message in cases:
        with pytest.raises(ValueError, match=message):
            ms_deform_attn(v, shapes, p, w)
    with pytest.raises(TypeError, match="value must be a floating-point tensor"):
        ms_deform_attn(value.long(), LEVELS, locations, weights)
    with pytest.raises(ValueError, match="on one device, but value is on cpu and weights on meta"):
        ms_deform_attn(value, LEVELS, locations, weights.to("meta"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cuda", "computes on cuda tensors, but these are on cpu; move them"),
        ("fast", "must be cuda, cpu or torch, got 'fast'"),
    ],
)
def test_a_backend_that_cannot_be_had_is_an_error(monkeypatch, asked, message):
    monkeypatch.setenv("IDOL_MSDA_BACKEND", asked)
    value, locations, weights = arguments(LEVELS)
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(value, LEVELS, locations, weights)


def test_the_forced_cpu_kernel_refuses_tensors_elsewhere(monkeypatch):
    monkeypatch.setenv("IDOL_MSDA_BACKEND", "cpu")
    inputs = [t.to("meta") for t in arguments(LEVELS)]
    with pytest.raises(ValueError, match="these are on meta"):
        ms_deform_attn(inputs[0], LEVELS, inputs[1], inputs[2])


def test_the_variable_chooses_the_backend(monkeypatch):
    called = []
    plain = reference.ms_deform_attn
    monkeypatch.setattr(
        door.reference, "ms_deform_attn", lambda *args: called.append("torch") or plain(*args)
    )
    kernel = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *args: called.append("cpu") or kernel(*args))
    value, locations, weights = arguments(LEVELS)
    for asked in ("torch", "cpu", ""):
        monkeypatch.setenv("IDOL_MSDA_BACKEND", asked)
        ms_deform_attn(value, LEVELS, locations, weights)
    assert called == ["torch", "cpu", "cpu"]


def test_without_numba_plain_pytorch_is_used_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "missing", lambda: "numba cannot be imported (No module named numba)")
    value, locations, weights = arguments(LEVELS)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = ms_deform_attn(value, LEVELS, locations, weights)
    assert [r.message for r in caplog.records] == [
        "deformable attention runs in plain PyTorch, many times slower: "
        "numba cannot be imported (No module named numba)"
    ]
    assert torch.equal(out, reference.ms_deform_attn(value, LEVELS, locations, weights))
    monkeypatch.setenv("IDOL_MSDA_BACKEND", "cpu")
    with pytest.raises(ValueError, match="=cpu is set, but numba cannot be imported"):
        ms_deform_attn(value, LEVELS, locations, weights)


def test_other_devices_take_plain_pytorch_and_say_so_once(caplog):
    inputs = [t.to("meta") for t in arguments(LEVELS)]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = ms_deform_attn(inputs[0], LEVELS, inputs[1], inputs[2])
    assert out.shape == (2, 3, 8)
    assert len(caplog.records) == 1
    assert caplog.records[0].message.endswith("there is no kernel for meta")


def test_the_public_name_is_the_function():
    assert callable(ops.ms_deform_attn)
    assert ops.ms_deform_attn is door.ms_deform_attn
