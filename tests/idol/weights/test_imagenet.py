"""ImageNet weights under every published naming, and files that do not fit."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from idol.config import BackboneConfig
from idol.network import backbone
from idol.weights.imagenet import load_imagenet
from idol.weights.report import CheckpointError

R50 = BackboneConfig(name="resnet50")
SWIN = BackboneConfig(
    name="swin", swin_embed=8, swin_depths=(2, 2, 2, 2), swin_heads=(1, 1, 2, 2), swin_window=4
)


def trained(config, seed=1):
    """A backbone whose every weight differs from a fresh one's."""
    model = backbone.build(config)
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return model


def torchvision_name(key):
    """detectron2's names the other way, as torchvision writes them."""
    key = re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", key)
    key = key.replace("shortcut.norm", "downsample.1").replace("shortcut.", "downsample.0.")
    key = re.sub(r"conv(\d)\.norm", r"bn\1", key)
    return key.removeprefix("stem.")


def torchvision_file(config):
    state = {torchvision_name(k): v for k, v in trained(config).state_dict().items()}
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.1.bias"} <= set(state)
    counters = [k.replace("running_mean", "num_batches_tracked") for k in state if "_mean" in k]
    state |= {k: torch.tensor(7) for k in counters}
    return state | {"fc.weight": torch.randn(10, 2048), "fc.bias": torch.randn(10)}


def official_swin_file(config):
    state = {k: v for k, v in trained(config).state_dict().items() if not re.match(r"norm\d", k)}
    state |= {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    state |= {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)}
    return state | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}


def timm_swin_file(config):
    state = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", k): v
        for k, v in official_swin_file(config).items()
        if not k.startswith("head") and "index" not in k
    }
    return state | {"head.fc.weight": torch.ones(5, 64), "head.fc.bias": torch.ones(5)}


def assert_loaded(model, config, fresh=()):
    expected = trained(config).state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith(tuple(fresh)):
            assert torch.equal(value, expected[key]), key


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    def write(state, name="weights.pth", wrapper=None):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file({k: v.contiguous() for k, v in state.items()}, path)
        else:
            torch.save({wrapper: state} if wrapper else state, path)
        return path

    return write


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_torchvision_and_timm_names_of_resnets_load_from_both_kinds_of_file(save, name):
    model = backbone.build(R50)
    dropped = load_imagenet(model, save(torchvision_file(R50), name))
    assert_loaded(model, R50)
    assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} < set(dropped)
    assert len(dropped) == 2 + 53


def test_detectron2_names_load_and_whatever_surrounds_them_is_told(save):
    model = backbone.build(R50)
    state = trained(R50).state_dict()
    state["stem.fc.weight"] = torch.ones(3)
    assert load_imagenet(model, save(state, wrapper="model")) == ["stem.fc.weight"]
    assert_loaded(model, R50)
    inside = {f"backbone.bottom_up.{k}": v for k, v in trained(R50).state_dict().items()}
    inside["rpn_head.conv1.weight"] = torch.ones(3)
    inside["rpn_head.conv.weight"] = torch.ones(3)
    model = backbone.build(R50)
    dropped = load_imagenet(model, save(inside, wrapper="model"))
    assert dropped == ["rpn_head.conv1.weight", "rpn_head.conv.weight"]
    assert_loaded(model, R50)


def test_prefixes_of_data_parallelism_are_seen_through(save):
    model = backbone.build(R50)
    state = {f"module.{k}": v for k, v in torchvision_file(R50).items()}
    load_imagenet(model, save(state, wrapper="state_dict"))
    assert_loaded(model, R50)


@pytest.mark.parametrize("make", [official_swin_file, timm_swin_file])
def test_official_and_timm_names_of_swin_load(save, make):
    model = backbone.build(SWIN)
    norms = {k: v.clone() for k, v in model.state_dict().items() if re.match(r"norm\d", k)}
    dropped = load_imagenet(model, save(make(SWIN), wrapper="model"))
    assert_loaded(model, SWIN, fresh=("norm0", "norm1", "norm2", "norm3"))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in norms.items())
    assert {"norm.weight", "layers.0.blocks.1.attn_mask"} < set(dropped)
    assert any(k.startswith("head.") for k in dropped)


def test_a_detectors_swin_brings_its_output_norms(save):
    model = backbone.build(SWIN)
    stored = trained(SWIN).state_dict()
    state = {f"detr.detr.backbone.0.backbone.{k}": v for k, v in stored.items()}
    load_imagenet(model, save(state | {"detr.controller.layers.0.weight": torch.ones(2)}))
    assert_loaded(model, SWIN)


def change(state, key, value):
    return {k: value if k == key else v for k, v in state.items()}


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        (R50, lambda: dict(list(torchvision_file(R50).items())[:-60]), "missing"),
        (R50, lambda: torchvision_file(BackboneConfig(name="resnet101")), r"res4\.6\.conv1"),
        (R50, lambda: change(torchvision_file(R50), "conv1.weight", torch.ones(64, 3, 3, 3)),
         r"stem\.conv1\.weight: \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)"),
        (R50, lambda: change(torchvision_file(R50), "bn1.bias", torch.full((64,), torch.nan)),
         "NaN or infinite"),
        (R50, lambda: official_swin_file(SWIN), "no backbone of this kind"),
        (SWIN, lambda: official_swin_file(BackboneConfig(
            name="swin", swin_embed=8, swin_depths=(2, 2, 2, 2), swin_heads=(1, 1, 2, 2),
            swin_window=2)), r"relative_position_bias_table: \(9, 1\) instead of \(49, 1\)"),
        (SWIN, lambda: {f"{q}.{k}": v for q in "ab" for k, v in official_swin_file(SWIN).items()},
         r"more than one network, under 'a\.', 'b\.'"),
    ],
    ids=["part", "r101", "shape", "nan", "other", "window", "two"],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(save, config, state, message):
    model = backbone.build(config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_imagenet(model, save(state()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_weight_under_two_names_is_refused(save):
    state = torchvision_file(R50)
    state["layer1.0.conv1.norm.weight"] = state["layer1.0.bn1.weight"]
    with pytest.raises(CheckpointError, match=r"holds res2\.0\.conv1\.norm\.weight twice"):
        load_imagenet(backbone.build(R50), save(state))


def test_backbones_without_published_weights_say_so(save):
    path = save(torchvision_file(R50))
    with pytest.raises(ValueError, match="tiny has none"):
        load_imagenet(backbone.build(BackboneConfig(name="tiny")), path)
    folded = backbone.build(R50).eval()
    folded.fold()
    with pytest.raises(ValueError, match="this backbone is folded"):
        load_imagenet(folded, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        load_imagenet(backbone.build(R50), tmp_path / "nothing.pth")


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_a_truncated_file_is_refused(save, name):
    path = save({"conv1.weight": torch.ones(64, 3, 7, 7)}, name)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_imagenet(backbone.build(R50), path)
