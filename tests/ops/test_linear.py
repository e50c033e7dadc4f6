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
