"""Networks of clips from files: our checkpoints, the authors' names, and what does not fit."""

from dataclasses import replace

import pytest
import torch

import idol
from idol import clip_presets
from idol.clips import weights
from idol.weights import CheckpointError


@pytest.fixture
def tiny() -> idol.clips.ClipNetwork:
    """A SeqFormer of random weights."""
    torch.manual_seed(0)
    return idol.clips.build("seqformer_tiny")


def released_names(model: idol.clips.ClipNetwork) -> dict[str, torch.Tensor]:
    """Its weights as VNext stores them, with tensors that only the released module has."""
    own = model.state_dict()
    named = {}
    for key, tensor in own.items():
        key = key.replace("transformer.encoder.", "transformer.encoder.layers.")
        key = key.replace("transformer.decoder.", "transformer.decoder.layers.")
        key = key.replace("output_proj_box", "cross_attn.output_proj_box")
        if key.startswith(("mask_branch.", "controller.")):
            key = "detr." + key.replace("mask_branch.", "mask_head.")
        elif key.startswith("backbone."):
            key = "detr.detr.backbone.0." + key
        else:
            key = "detr.detr." + key.replace("transformer.query_embed", "query_embed")
        named[key] = tensor
    unused = torch.zeros(64, 64)
    named["detr.detr.transformer.encoder.layers.0.self_attn.output_proj_box.weight"] = unused
    return named


def test_a_checkpoint_comes_back_as_it_was_saved(tiny, tmp_path):
    path = idol.weights.save(tiny, tmp_path / "clips.safetensors")
    back = idol.clips.load(path)
    assert back.config == tiny.config
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in tiny.state_dict().items())
    with pytest.raises(ValueError, match=r"idol\.clips\.build or idol\.clips\.load"):
        idol.load(path)


def test_released_names_load_under_any_wrapper_and_tell_the_preset(tiny, tmp_path, monkeypatch):
    state = {f"module.{key}": tensor for key, tensor in released_names(tiny).items()}
    torch.save({"model": state, "iteration": 7}, tmp_path / "model_final.pth")
    names = ("ifc_tiny", "seqformer_tiny")
    monkeypatch.setattr(
        clip_presets, "PRESETS", {name: clip_presets.PRESETS[name] for name in names}
    )
    for preset in (None, "seqformer_tiny"):
        back = idol.clips.load(tmp_path / "model_final.pth", preset=preset)
        assert all(torch.equal(v, back.state_dict()[k]) for k, v in tiny.state_dict().items())


def test_names_of_the_first_repository_load_with_classes_by_category_id(tmp_path):
    with torch.device("meta"):
        model = weights.make(idol.presets.by_name("seqformer_r50"))
    state = {}
    for key, tensor in released_names(model).items():
        key = key.removeprefix("detr.")
        if "class_embed" in key:
            tensor = torch.empty(42, *tensor.shape[1:], device="meta")
        key = key.replace("backbone.0.backbone.", "backbone.0.body.")
        for ours, theirs in (("stem.conv1.norm", "bn1"), ("stem.conv1", "conv1")):
            key = key.replace(ours, theirs)
        for stage in range(2, 6):
            key = key.replace(f"body.res{stage}", f"body.layer{stage - 1}")
        for n in (1, 2, 3):
            key = key.replace(f"conv{n}.norm", f"bn{n}")
        key = key.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        state[key] = tensor
    back = weights.released(state)
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_missing_and_unknown_keys_are_all_named(tiny, tmp_path):
    state = released_names(tiny)
    state["detr.detr.transformer.extra"] = torch.zeros(1)
    del state["detr.controller.layers.0.bias"]
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as caught:
        idol.clips.load(tmp_path / "other.pth", preset="seqformer_tiny")
    assert caught.value.report.missing == ("controller.layers.0.bias",)
    assert caught.value.report.unexpected == ("transformer.extra",)
    with pytest.raises(CheckpointError, match="fits the network of no preset"):
        idol.clips.load(tmp_path / "other.pth")


def test_wrong_doors_are_pointed_out(tmp_path):
    with pytest.raises(ValueError, match="configures IDOL, which takes single frames"):
        idol.clips.build("tiny")
    with pytest.raises(ValueError, match=r"idol\.clips\.build"):
        idol.build("ifc_tiny")
    with pytest.raises(CheckpointError, match=r"holds IDOL, not a network of clips"):
        idol.clips.load("shipped")
    with pytest.raises(ValueError, match="no preset is called 'seqformer_r5000'"):
        idol.clips.build("seqformer_r5000")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        idol.clips.load(tmp_path / "none.pth", preset="ifc_r50")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("ifc_r50", "ifc_ytvis19_r50"),
        ("ytvis21_seqformer_swin_l", "seqformer_ytvis21_swin_l"),
        ("seqformer_ovis_r101", "seqformer_ovis_r101"),
        ("tiny_ifc", "ifc_tiny"),
        ("SeqFormer", "seqformer_ytvis19_r50"),
        ("IFC-R101-ytvis2021", "ifc_ytvis21_r101"),
    ],
)
def test_parts_of_a_presets_name_come_in_any_order(name, known):
    assert idol.presets.by_name(name).name == known


@pytest.mark.parametrize("name", clip_presets.PRESETS)
def test_every_preset_of_clips_is_a_configuration_of_its_own_name(name):
    config = idol.presets.by_name(name)
    assert config.name == name
    assert config.model.method == name.split("_")[0]
    assert len(config.categories) in (0, config.model.num_classes)
    assert replace(config) == config
