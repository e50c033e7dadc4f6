"""Backbones: folding, checkpointed activations, freezing, and the released parameter lists."""

from dataclasses import replace

import pytest
import torch

from idol.config import BackboneConfig, Config, ModelConfig, override
from idol.network import backbone, resnet
from idol.network.layers import Backbone
from idol.network.model import IDOL
from idol.weights.released import from_released

SWIN = BackboneConfig(
    name="swin", swin_embed=8, swin_depths=(2, 2, 2, 2), swin_heads=(1, 1, 2, 2), swin_window=4
)
TINY = BackboneConfig(name="tiny", tiny_channels=(8, 8, 16, 16, 24))
R50 = BackboneConfig(name="resnet50")


def randomise_norms(model):
    """Statistics and scales as different from the identity as those of trained weights."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, resnet.FrozenBatchNorm):
            for buffer in (module.weight, module.running_var):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            for buffer in (module.bias, module.running_mean):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
    return model


@pytest.fixture
def r50() -> Backbone:
    torch.manual_seed(0)
    return randomise_norms(backbone.build(R50)).eval()


@pytest.mark.parametrize(
    ("name", "model", "parameters"),
    [
        ("r50", R50, 43_065_787),
        ("r101", BackboneConfig(name="resnet101"), 62_005_691),
        ("swinL", BackboneConfig(name="swin"), 213_403_055),
    ],
)
def test_parameters_and_keys_are_the_released_networks(name, model, parameters, shared):
    with torch.device("meta"):
        network = IDOL(Config(model=ModelConfig(backbone=model)))
    assert sum(p.numel() for p in network.parameters()) == parameters
    lines = (shared / f"reference/state_dict_{name}.txt").read_text().splitlines()
    entries = {}
    for key, shape, dtype in (line.split("\t") for line in lines):
        sizes = [int(n) for n in shape.strip("() ").split(",") if n.strip()]
        # One number under any shape: the sizes are those of Swin-L, the memory is not.
        entries[key] = torch.zeros((), dtype=getattr(torch, dtype)).expand(sizes)
    released = {k: (v.shape, v.dtype) for k, v in from_released(entries).items()}
    assert len(entries) == len(lines)
    assert {k: (v.shape, v.dtype) for k, v in network.state_dict().items()} == released


@pytest.mark.parametrize("config", [R50, SWIN, TINY], ids=lambda c: c.name)
@pytest.mark.parametrize("size", [(64, 96), (32, 32)])
def test_features_have_strides_8_16_32_and_the_channels_announced(config, size):
    model = backbone.build(config).eval()
    with torch.inference_mode():
        features = model(torch.randn(2, 3, *size))
    expected = [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(model.channels, (8, 16, 32), strict=True)
    ]
    assert [tuple(x.shape) for x in features] == expected


def test_a_folded_resnet_says_the_same(r50):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = r50(images)
        assert r50.fold()
        after = r50(images)
    for a, b in zip(after, before, strict=True):
        # 1e-5 of the largest value; 1e-6 was seen.
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert r50.folded
    assert r50.channels == (512, 1024, 2048)
    assert not any(isinstance(m, resnet.FrozenBatchNorm) for m in r50.modules())
    assert not any(p.requires_grad for p in r50.parameters() if p.ndim == 1)


def test_folding_twice_changes_nothing_more(r50):
    r50.fold()
    weights = {k: v.clone() for k, v in r50.state_dict().items()}
    assert not r50.fold()
    assert all(torch.equal(v, weights[k]) for k, v in r50.state_dict().items())


def test_a_folded_resnet_refuses_to_train_and_to_load(r50):
    with pytest.raises(ValueError, match=r"call \.eval\(\) first"):
        backbone.build(R50).train().fold()
    plain = {k: v.clone() for k, v in r50.state_dict().items()}
    r50.fold()
    with pytest.raises(ValueError, match="cannot train"):
        r50.train()
    assert not r50.training
    with pytest.raises(ValueError, match="this backbone is folded"):
        r50.load_state_dict(plain)
    with pytest.raises(ValueError, match="come from a folded backbone"):
        backbone.build(R50).load_state_dict(r50.state_dict())


def test_the_weights_of_a_folded_resnet_are_refused_inside_a_network_too(r50):
    network = IDOL(Config())
    state = network.state_dict()
    r50.fold()
    mixed = {k: v for k, v in state.items() if not k.startswith("backbone.")}
    mixed |= {f"backbone.{k}": v for k, v in r50.state_dict().items()}
    with pytest.raises(ValueError, match="come from a folded backbone"):
        network.load_state_dict(mixed)


@pytest.mark.parametrize("config", [SWIN, TINY], ids=lambda c: c.name)
def test_folding_a_network_without_frozen_norms_does_nothing(config):
    model = backbone.build(config).eval()
    keys = list(model.state_dict())
    assert not model.fold()
    assert not model.folded
    assert list(model.state_dict()) == keys
    model.train()


@pytest.mark.parametrize("fold", [False, True])
def test_the_compiler_sees_one_graph_of_a_resnet(r50, fold):
    if fold:
        r50.fold()
    compiled = torch.compile(r50, fullgraph=True, backend="eager")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for got, expected in zip(compiled(images), r50(images), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("config", [R50, SWIN, TINY], ids=lambda c: c.name)
def test_checkpointed_activations_give_the_same_gradients(config):
    torch.manual_seed(0)
    plain = backbone.build(config).train()
    thrifty = backbone.build(config, checkpoint_activations=True).train()
    thrifty.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    recomputed = 0

    def count(*_):
        nonlocal recomputed
        recomputed += 1

    blocks = [
        m for m in thrifty.modules() if type(m).__name__ in ("Bottleneck", "Block", "BasicBlock")
    ]
    for block in blocks:
        block.register_forward_pre_hook(count)
    for model in (plain, thrifty):
        torch.manual_seed(1)  # the same paths are skipped
        sum(x.square().mean() for x in model(images)).backward()
    trained = sum(any(p.requires_grad for p in block.parameters()) for block in blocks)
    assert recomputed == len(blocks) + trained
    for (name, a), b in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_nothing_is_recomputed_in_eval_mode():
    model = backbone.build(TINY, checkpoint_activations=True).eval()
    calls = []
    model.stages[0].register_forward_hook(lambda *_: calls.append(1))
    sum(x.sum() for x in model(torch.randn(1, 3, 32, 32))).backward()
    assert calls == [1]


@pytest.mark.parametrize(("asked", "frozen"), [(None, 11), (0, 0), (1, 1), (2, 11)])
def test_resnets_freeze_the_stages_asked_for(asked, frozen):
    model = backbone.build(replace(R50, frozen_stages=asked))
    assert sum(not p.requires_grad for p in model.parameters()) == frozen


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=swin", "swin_depths=[2,2,6]"], "swin_depths needs 4 positive numbers"),
        (["name=swin", "swin_heads=[1,2,0,8]"], "swin_heads needs 4 positive numbers"),
        (["name=swin", "swin_heads=[5,12,24,48]"], "must be divisible by swin_heads"),
        (["name=swin", "swin_window=1"], "swin_window must be at least 2"),
        (["name=swin", "swin_drop_path=1"], r"swin_drop_path must lie in \[0, 1\)"),
        (["name=tiny", "frozen_stages=2"], "'tiny' backbone cannot freeze"),
        (["frozen_stages=6"], r"frozen_stages must lie in \[0, 5\]"),
        (["name=transformers"], "give it exactly when name is 'transformers'"),
        (["source=some/model"], "give it exactly when name is 'transformers'"),
        (["name=resnet18"], "must be one of"),
    ],
)
def test_impossible_backbones_are_refused_with_the_rule(overrides, message):
    with pytest.raises(ValueError, match=message):
        override(Config(), [f"model.backbone.{text}" for text in overrides])
