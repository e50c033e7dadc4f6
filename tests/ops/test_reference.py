import numpy as np
import pytest
import torch

from ops import reference


def test_a_sample_at_a_pixel_centre_is_that_pixel():
    value = torch.arange(6.0).reshape(1, 6, 1, 1)
    # Pixel (row 1, column 2) of a 2 × 3 level has its centre at ((2 + ½) / 3, (1 + ½) / 2).
    locations = torch.tensor([2.5 / 3, 1.5 / 2]).reshape(1, 1, 1, 1, 1, 2)
    weights = torch.ones(1, 1, 1, 1, 1)
    out = reference.ms_deform_attn(value, [(2, 3)], locations, weights)
    torch.testing.assert_close(out, torch.tensor([[[5.0]]]))


def test_the_border_of_the_picture_is_half_outside():
    value = torch.ones(1, 4, 1, 1)
    locations = torch.tensor([[0.0, 0.5], [0.0, 0.0], [1.0, 1.0], [-0.25, 0.5]])
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    out = reference.ms_deform_attn(
        value, [(2, 2)], locations.reshape(1, 1, 1, 1, 4, 2), weights.reshape(1, 1, 1, 1, 4)
    )
    # Half of an edge, a quarter of two corners, nothing one whole pixel outside.
    torch.testing.assert_close(out.item(), 0.5 * 1 + 0.25 * 10 + 0.25 * 100)


@pytest.mark.parametrize("case", ["small", "r50like", "onelevel"])
def test_equals_the_released_code(shared, case):
    with np.load(shared / "reference" / "oracle" / "msda.npz") as oracle:
        stored = {
            name: torch.from_numpy(oracle[f"{case}/{name}"])
            for name in (
                "value", "loc", "weight", "out", "grad_out", "grad_value", "grad_loc", "grad_weight"
            )
        }  # fmt: skip
        shapes = [(int(h), int(w)) for h, w in oracle[f"{case}/shapes"]]
    inputs = [stored[name].requires_grad_() for name in ("value", "loc", "weight")]
    out = reference.ms_deform_attn(inputs[0], shapes, inputs[1], inputs[2])
    gradients = torch.autograd.grad(out, inputs, stored["grad_out"])
    torch.testing.assert_close(out, stored["out"], atol=1e-10, rtol=0)
    for name, gradient in zip(("grad_value", "grad_loc", "grad_weight"), gradients, strict=True):
        torch.testing.assert_close(gradient, stored[name], atol=1e-10, rtol=0, msg=name)
