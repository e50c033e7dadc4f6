"""Linear layers give what nn.Linear gives, with gradients, whatever product computes them."""

import pytest
import torch
from torch import nn

from ops.linear import linear


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 4, 3, 5), (0, 3, 5)])
def test_values_and_gradients_are_those_of_the_layer(relu, shape):
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 7)
    x = torch.randn(shape, generator=g, requires_grad=True)
    expected = layer(x).relu() if relu else layer(x)
    out = linear(layer, x, relu=relu)
    torch.testing.assert_close(out, expected)
    grad = torch.randn(out.shape, generator=g)
    inputs = (x, layer.weight, layer.bias)
    found, wanted = (torch.autograd.grad(y, inputs, grad) for y in (out, expected))
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(linear(layer, x, relu=relu), expected)


@pytest.mark.parametrize("relu", [False, True])
def test_sixteen_bits_are_rounded_once(relu):
    g = torch.Generator().manual_seed(1)
    layer, x = nn.Linear(64, 48), torch.randn(2, 9, 64, generator=g)
    layer, x = layer.bfloat16(), x.bfloat16()
    exact = nn.Linear(64, 48).double()
    exact.load_state_dict(layer.state_dict())
    expected = exact(x.double())
    with torch.no_grad():
        found = linear(layer, x, relu=relu)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.double(), expected.relu() if relu else expected, rtol=2**-7, atol=2**-7
    )


def test_a_relu_in_place_copies_no_gradient():
    # CopySlices, the gradient of a change in place of a view, clones what it gets.
    out = linear(nn.Linear(5, 7), torch.randn(2, 3, 5), relu=True)
    seen, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            seen.add(type(node).__name__)
            todo += [parent for parent, _ in node.next_functions]
    assert "ReluBackward0" in seen
    assert not any("CopySlices" in name or "AsStrided" in name for name in seen)
