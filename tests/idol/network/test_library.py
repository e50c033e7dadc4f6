"""Backbones of the transformers library, small and random, without a network."""

import builtins
import json
from dataclasses import replace

import pytest
import torch

from idol import presets
from idol.config import BackboneConfig
from idol.network import backbone
from idol.network.library import LibraryBackbone
from idol.network.model import IDOL

pytest.importorskip("transformers")

CONVNEXT = json.dumps(
    {"model_type": "convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
)
RESNET = json.dumps(
    {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32, 48, 64],
     "depths": [1, 1, 1, 1], "layer_type": "basic"}
)  # fmt: skip
DINOV2 = json.dumps(
    {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
)


@pytest.mark.parametrize(("source", "channels"), [(CONVNEXT, (16, 24, 32)), (RESNET, (32, 48, 64))])
def test_maps_of_strides_8_16_32_are_picked_by_what_the_network_does(source, channels):
    model = backbone.build(BackboneConfig(name="transformers", source=source)).eval()
    assert model.channels == channels
    with torch.inference_mode():
        shapes = [tuple(x.shape) for x in model(torch.randn(2, 3, 64, 96))]
    expected = [(8, 12), (4, 6), (2, 3)]
    assert shapes == [(2, c, *hw) for c, hw in zip(channels, expected, strict=True)]


def test_a_whole_network_trains_on_one():
    base = presets.by_name("tiny")
    body = BackboneConfig(name="transformers", source=CONVNEXT)
    network = IDOL(replace(base, model=replace(base.model, backbone=body))).train()
    outputs = network(torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool))
    outputs.logits.square().sum().backward()
    learned = [p for p in network.backbone.parameters() if p.requires_grad]
    assert len(learned) > 20
    assert all(p.grad is not None for p in learned)


@pytest.mark.parametrize("source", [CONVNEXT, RESNET])
def test_every_parameter_that_asks_for_a_gradient_gets_one(source):
    model = LibraryBackbone(source).train()
    sum(x.square().sum() for x in model(torch.randn(2, 3, 64, 64))).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_batch_norms_stay_frozen_while_training():
    model = LibraryBackbone(RESNET).train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 13
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64) * 5
    training = model(images)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert model.body.encoder.training
    for a, b in zip(training, model.eval()(images), strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointed_activations_give_the_same_gradients():
    torch.manual_seed(0)
    config = BackboneConfig(name="transformers", source=CONVNEXT)
    plain, thrifty = backbone.build(config), backbone.build(config, checkpoint_activations=True)
    thrifty.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    calls = []
    thrifty.body.register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain.train(), thrifty.train()):
        sum(x.square().sum() for x in model(images)).backward()
    assert len(calls) == 2
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_weights_come_from_a_local_folder_and_a_portable_source_needs_it_no_more(tmp_path):
    folder = tmp_path / "weights"
    first = LibraryBackbone(CONVNEXT).eval()
    first.body.half().save_pretrained(folder)
    config = BackboneConfig(name="transformers", source=str(folder))
    model = backbone.build(config).eval()
    assert all(v.dtype == torch.float32 for v in model.state_dict().values())
    for key, value in first.state_dict().items():
        assert torch.equal(model.state_dict()[key], value.float()), key
    portable = model.portable(config)
    assert "weights" not in portable.source
    again = backbone.build(portable).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(again(images), model(images), strict=True):
            assert torch.equal(a, b)


def test_portable_keeps_every_other_backbone_as_it_is():
    config = BackboneConfig(name="tiny")
    assert backbone.build(config).portable(config) == config


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DINOV2, r"strides 8, 16 and 32; .* have 14\.22, 14\.22"),
        ('{"model_type": "bert"}', "no backbone of the transformers library"),
        ('{"model_type": "nonsense"}', "no backbone of the transformers library"),
        ('{"hidden_sizes": [1]}', 'needs a "model_type"'),
        ('{"model_type": "convnext", "hidden_sizes": "x"}', "no backbone of the transformers"),
        ("{half", "not JSON"),
    ],
)
def test_what_cannot_serve_is_refused_with_the_rule(source, message):
    with pytest.raises(ValueError, match=message):
        LibraryBackbone(source)


def test_a_missing_folder_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no local folder with config\.json and weights"):
        LibraryBackbone(str(tmp_path / "nothing"))
    folder = tmp_path / "no_weights"
    LibraryBackbone(CONVNEXT).body.config.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"no local folder with config\.json and weights"):
        LibraryBackbone(str(folder))


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "transformers":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match="pip install transformers"):
        LibraryBackbone(CONVNEXT)
