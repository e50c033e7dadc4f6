"""The attention module against stored numbers, and reference points under padding."""

import numpy as np
import pytest
import torch

from idol.network.geometry import encoder_references, valid_ratios
from idol.network.transformer import inverse_sigmoid
from ops import MSDeformAttn
from tests.idol import oracle_recipe as recipe

PREFIX = "detr.detr.transformer.encoder.layers.0.self_attn."


@pytest.mark.parametrize("case", ["mod2d", "mod4d"])
def test_attention_equals_the_released_module_in_float64(case, shared):
    stored = np.load(shared / "reference/oracle/msda.npz")
    module = MSDeformAttn(256, 8, 4).double()
    own = module.state_dict()
    module.load_state_dict({k: recipe.weight(PREFIX + k, v.shape).double() for k, v in own.items()})
    shapes = [tuple(int(x) for x in row) for row in stored["mod/shapes"]]
    query, source, references = (
        torch.from_numpy(stored[name]).double() for name in ("mod/query", "mod/src", f"{case}/ref")
    )
    padding = torch.from_numpy(stored["mod/pad"].astype(bool))
    with torch.no_grad():
        out = module(query, references, source, shapes, padding)
    np.testing.assert_allclose(out.numpy(), stored[f"{case}/out"], atol=1e-9, rtol=0)


def test_reference_points_are_cell_centres_and_shrink_with_the_padding():
    shapes = [(2, 4), (1, 2)]
    whole = torch.ones(1, 2, 2)
    points = encoder_references(shapes, whole)
    assert points.shape == (1, 10, 2, 2)
    torch.testing.assert_close(points[0, 0, 0], torch.tensor([0.125, 0.25]))
    # The right half is padded: a cell's centre is twice as far across the picture itself, and
    # half of that again in units of each padded level.
    half = torch.tensor([[[0.5, 1.0], [0.5, 1.0]]])
    torch.testing.assert_close(encoder_references(shapes, half)[0, 0, 1], points[0, 0, 1])


def test_valid_ratios_count_the_first_row_and_column():
    padding = torch.zeros(1, 4, 8, dtype=torch.bool)
    padding[:, 3:] = True
    padding[:, :, 6:] = True
    torch.testing.assert_close(valid_ratios([padding]), torch.tensor([[[0.75, 0.75]]]))


def test_inverse_sigmoid_undoes_the_sigmoid_and_stays_finite_at_the_borders():
    x = torch.linspace(-8, 8, 33, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)
    assert torch.isfinite(inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]))).all()
