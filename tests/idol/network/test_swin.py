"""Swin against the released code's stored outputs, and its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from idol.config import BackboneConfig
from idol.network import backbone
from idol.network.layers import Backbone
from idol.network.swin import Block, _shift_mask, _unwindows, _windows
from tests.idol import oracle_recipe as recipe

PREFIX = "detr.detr.backbone.0.backbone."
MINI = BackboneConfig(
    name="swin", swin_embed=24, swin_depths=(2, 2, 6, 2), swin_heads=(1, 2, 4, 8), swin_window=12
)
SMALL = BackboneConfig(
    name="swin", swin_embed=8, swin_depths=(2, 2, 2, 2), swin_heads=(1, 1, 2, 2), swin_window=4
)


@pytest.fixture(scope="module")
def stored(shared) -> np.lib.npyio.NpzFile:
    return np.load(shared / "reference/oracle/swin_mini.npz")


@pytest.fixture(scope="module")
def mini(stored) -> Backbone:
    model = backbone.build(MINI).eval()
    state = model.state_dict()
    for key, own in state.items():
        if own.is_floating_point():
            state[key] = recipe.weight(PREFIX + key, own.shape)
    model.load_state_dict(state)
    return model


def test_keys_and_shapes_are_the_released_ones(stored, mini):
    own = [f"{key} {tuple(value.shape)}" for key, value in mini.state_dict().items()]
    assert own == [str(key) for key in stored["keys"]]


def test_all_four_outputs_equal_the_released_network(stored, mini):
    """102 x 141 pixels: incomplete patches, odd sides to merge, windows to fill up."""
    images = torch.from_numpy(np.random.RandomState(77).randn(2, 3, 102, 141).astype(np.float32))
    with torch.inference_mode():
        tokens = mini.stages(images)
        features = mini(images)
        maps = [mini.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2) for i, x in enumerate(tokens)]
    for index, got in enumerate(maps):
        expected = stored[f"res{index + 2}"]
        assert got.shape == expected.shape
        # 2e-5 is the stored tolerance; 3.4e-6 was seen.
        assert np.abs(got.numpy() - expected).max() <= 2e-5
    for got, expected in zip(features, maps[1:], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert [x.shape[1] for x in features] == list(mini.channels)


def test_the_relative_position_index_is_the_stored_one(stored, mini):
    index = mini.layers[2].blocks[3].attn.relative_position_index
    assert index.dtype == torch.int64
    assert np.array_equal(index.numpy(), stored["relative_position_index"])


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    half=st.integers(1, 4),
    batch=st.integers(1, 2),
)
def test_windows_and_back_is_the_identity(rows, columns, half, batch):
    side = 2 * half
    x = torch.arange(batch * rows * columns * side * side * 3.0)
    x = x.view(batch, rows * side, columns * side, 3)
    windows = _windows(x, side)
    assert windows.shape == (batch, rows * columns, side * side, 3)
    assert torch.equal(windows[0, -1, 0], x[0, -side, -side])
    assert torch.equal(_unwindows(windows, side, rows * side, columns * side), x)


@given(rows=st.integers(1, 3), columns=st.integers(1, 3), half=st.integers(1, 3))
@settings(max_examples=20)
def test_the_shift_mask_parts_what_the_shift_brought_together(rows, columns, half):
    """Tokens of a shifted window see each other unless the picture's edge lies between them."""
    side, height, width = 2 * half, 2 * half * rows, 2 * half * columns
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([y, x], -1).roll((-half, -half), (0, 1))[None]
    inside = _windows(place, side)[0]  # (n, S, 2): where each token of a window came from
    apart = (inside[:, :, None] - inside[:, None, :]).abs().amax(-1)
    # Neighbours across the seam are at least a window apart in the picture, unless the picture
    # is a single window: there they lie on different sides of its middle.
    seam = torch.zeros_like(apart, dtype=torch.bool)
    for axis, length in ((0, height), (1, width)):
        wrapped = inside[:, :, axis] < half
        last = (inside[:, :, axis] >= length - half) | wrapped
        differs = wrapped[:, :, None] != wrapped[:, None, :]
        seam |= differs & last[:, :, None] & last[:, None, :]
    mask = _shift_mask(height, width, side, torch.device("cpu"))
    assert torch.equal(mask, seam * -100.0)


def test_masks_made_in_inference_serve_training_too():
    model = backbone.build(SMALL)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        model.eval()(images)
    sum(x.sum() for x in model.train()(images)).backward()
    assert model.layers[0].blocks[1].attn.qkv.weight.grad is not None


def test_an_image_size_seen_before_gives_the_same_features():
    model = backbone.build(SMALL).eval()
    images = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        first = model(images)
        model(torch.randn(2, 3, 64, 32))
        again = model(images)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_only_the_unused_norm_gets_no_gradient():
    model = backbone.build(SMALL).train()
    sum(x.square().sum() for x in model(torch.randn(2, 3, 64, 64))).backward()
    waiting = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert waiting == []
    still = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert still == ["norm0.weight", "norm0.bias"]


def test_data_parallel_training_waits_for_no_parameter(tmp_path):
    """Without find_unused_parameters, the second step fails if the first missed a gradient."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(backbone.build(SMALL).train())
        for _ in range(2):
            sum(x.square().sum() for x in model(torch.randn(2, 3, 64, 64))).backward()
    finally:
        distributed.destroy_process_group()


def test_half_precision_stays_near_full():
    model = backbone.build(SMALL).eval()
    images = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        full = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images)
    for a, b in zip(half, full, strict=True):
        # bfloat16 has 8 bits: a few per cent after 8 blocks, of values of size 1.
        assert (a.float() - b).abs().max() < 0.15
        assert (a.float() - b).abs().mean() < 0.03


def test_the_chance_of_a_skipped_path_rises_linearly():
    model = backbone.build(MINI)
    rates = [block.drop_path for stage in model.layers for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 12))


def test_both_branches_of_an_image_are_skipped_independently_while_training():
    block = Block(4, 1, side=2, shifted=False, drop_path=0.3)
    # Each branch adds a constant, so what a token gained tells which branches were taken.
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(block.attn.proj.bias)
    nn.init.constant_(block.mlp.fc2.bias, 10.0)
    mask = torch.zeros(1, 4, 4)
    torch.manual_seed(0)
    with torch.inference_mode():
        gained = block.train()(torch.zeros(4000, 2, 2, 4), mask)
        quiet = block.eval()(torch.zeros(2, 2, 2, 4), mask)
    assert torch.equal(quiet, torch.full_like(quiet, 11.0))
    assert torch.equal(gained, gained[:, :1, :1, :1].expand_as(gained))
    values, counts = torch.unique(gained[:, 0, 0, 0], return_counts=True)
    # What is kept is scaled up, so that the mean stays: 0.7 * (1 / 0.7).
    torch.testing.assert_close(values, torch.tensor([0.0, 1.0, 10.0, 11.0]) / 0.7)
    np.testing.assert_allclose(counts / 4000, [0.09, 0.21, 0.21, 0.49], atol=0.03)


def test_frozen_stages_get_no_gradient_and_skip_no_path():
    model = backbone.build(
        BackboneConfig(name="swin", swin_embed=8, swin_depths=(1, 1, 1, 1), frozen_stages=2,
                       swin_heads=(1, 1, 1, 1), swin_window=2)
    ).train()  # fmt: skip
    assert not model.patch_embed.training
    assert not model.layers[0].blocks[0].training
    assert model.layers[1].blocks[0].training
    frozen = {n.split(".")[0] + "." + n.split(".")[1] for n, p in model.named_parameters()
              if not p.requires_grad}  # fmt: skip
    assert frozen == {"patch_embed.proj", "patch_embed.norm", "layers.0", "norm0.weight",
                      "norm0.bias"}  # fmt: skip


def test_the_compiler_sees_one_graph():
    model = backbone.build(SMALL).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = torch.randn(1, 3, 70, 64)
    with torch.inference_mode():
        for got, expected in zip(compiled(images), model(images), strict=True):
            torch.testing.assert_close(got, expected)
