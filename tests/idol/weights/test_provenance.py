"""A file of weights tells its preset by a released name, or by what its tensors fit."""

from dataclasses import replace

import pytest
import torch

import idol
from idol import presets
from idol.config import override
from idol.weights import provenance
from idol.weights.provenance import candidates, named


@pytest.mark.parametrize(
    ("file", "preset"),
    [
        ("YTVIS19_R50_502AP.pth", "ytvis19_r50"),
        ("YTVIS19_R50_495AP.pth", "ytvis19_r50"),
        ("ytvis19_r50.pth", "ytvis19_r50"),
        ("YTVIS19_R101_501AP.pth", "ytvis19_r101"),
        ("YTVIS19_SWINL_639AP-003.pth", "ytvis19_swin_l"),
        ("YTVIS21_R50_478AP.pth", "ytvis21_r50"),
        ("YTVIS21_R101_485AP.pth", "ytvis21_r101"),
        ("YTVIS21_SwinL_608AP-002.pth", "ytvis21_swin_l"),
        ("OVIS_R50_294AP.pth", "ovis_r50"),
        ("OVIS_SwinL_414AP.pth", "ovis_swin_l"),
        ("cocopretrain_R50.pth", "coco_r50"),
        ("cocopretrain_SWINL.pth", "coco_swin_l"),
        # Of these weights no configuration was released; they have that of ResNet-50's.
        ("cocopretrain_R101.pth", "coco_r101"),
        ("YTVIS19_R50x4.pth", None),
        ("my_YTVIS19_R50.pth", None),
        ("model_final.pth", None),
        ("YTVIS19.pth", None),
    ],
)
def test_a_released_files_name_tells_its_preset(file, preset):
    assert named(file) == preset


def test_a_name_is_told_only_where_there_is_such_a_preset(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", {"tiny": presets.tiny})
    assert named("YTVIS19_R50_502AP.pth") is None


def with_presets(monkeypatch, **overrides):
    """Small presets only: name → overrides of tiny."""
    made = {
        name: replace(override(presets.tiny(), changes), name=name)
        for name, changes in overrides.items()
    }
    monkeypatch.setattr(presets, "PRESETS", {name: (lambda c=c: c) for name, c in made.items()})
    return made


def test_tensors_tell_which_presets_networks_they_fit(monkeypatch):
    made = with_presets(
        monkeypatch, few=[], same=["train.steps=7"], many=["model.num_classes=9"],
        small=["model.width=32", "model.num_heads=2"],
    )  # fmt: skip
    found = candidates(idol.IDOL(made["few"]).state_dict())
    assert found.fitting == ("few", "same")
    assert found.other_classes == ("many",)
    assert (found.nearest, found.report.fits) == ("few", True)
    nine = candidates(idol.IDOL(made["many"]).state_dict())
    assert nine.fitting == ("many",)
    assert nine.other_classes == ("few", "same")


def test_heads_for_training_only_do_not_count(monkeypatch):
    made = with_presets(monkeypatch, tiny=[], heads=["model.num_identities=5"])
    state = idol.IDOL(made["heads"]).state_dict()
    assert candidates(state).fitting == ("tiny", "heads")
    kept = {k: v for k, v in state.items() if not k.startswith(provenance.TRAINING_HEADS)}
    assert candidates(kept).fitting == ("tiny", "heads")


def test_without_a_fit_the_nearest_network_is_told_with_its_differences(monkeypatch):
    made = with_presets(monkeypatch, near=[], far=["model.width=32", "model.num_heads=2"])
    state = idol.IDOL(made["near"]).state_dict()
    del state["transformer.level_embed"]
    found = candidates(state)
    assert (found.fitting, found.other_classes, found.nearest) == ((), (), "near")
    assert found.report.missing == ("transformer.level_embed",)


@pytest.mark.parametrize("name", ["ytvis19_r50", "ovis_swin_l", "coco_r50_paper", "tiny"])
def test_a_preset_is_found_by_its_own_network(name):
    with torch.device("meta"):
        state = idol.IDOL(presets.by_name(name)).state_dict()
    assert name in candidates(state).fitting
    assert all(
        name.endswith("paper") == found.endswith("paper") for found in candidates(state).fitting
    )


def test_shapes_are_known_without_filling_a_network():
    model = presets.by_name("tiny").model
    own = idol.IDOL(presets.by_name("tiny")).state_dict()
    shapes = provenance._shapes(model, model.num_classes)
    inference = {k for k in own if not k.startswith(provenance.TRAINING_HEADS)}
    assert shapes.keys() == inference
    assert all(shapes[k].is_meta and shapes[k].shape == own[k].shape for k in shapes)
    # Afterwards networks are made as ever.
    assert (idol.IDOL(presets.by_name("tiny")).class_embed[0].bias < -4).all()


def test_classes_are_counted_by_either_kind_of_head():
    assert provenance.num_classes({"class_embed.0.bias": torch.zeros(25)}) == 25
    mlp = {f"class_embed.0.layers.{i}.bias": torch.zeros(n) for i, n in enumerate((64, 64, 7))}
    assert provenance.num_classes(mlp) == 7
    assert provenance.num_classes({"backbone.stem.conv1.weight": torch.zeros(1)}) is None
