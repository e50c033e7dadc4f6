"""Released names ↔ ours: every key of the three networks, in order, and nothing else's."""

from dataclasses import replace

import pytest
import torch

import idol
from idol import presets
from idol.config import BackboneConfig, Config, ModelConfig
from idol.weights.released import from_released, released_name, to_released
from idol.weights.report import CheckpointError, compare

NETWORKS = {"r50": "resnet50", "r101": "resnet101", "swinL": "swin"}
ATTENTION = "detr.detr.transformer.decoder.layers.0.self_attn."
ALIAS = "detr.detr.transformer.decoder."


def listed(shared, name):
    """(key, shape, type) of a reference key list, in its order."""
    lines = (shared / f"reference/state_dict_{name}.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return [
        (key, tuple(int(n) for n in shape.strip("()").split(",") if n.strip()), dtype)
        for key, shape, dtype in rows
    ]


def small(seed=0, **model):
    """A released state dict of a small network with a real ResNet's names, and the network."""
    torch.manual_seed(seed)
    config = Config(
        model=ModelConfig(
            **{"num_classes": 3, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
            | {"width": 32, "feedforward": 16, "embedding_size": 8}
            | model
        )
    )
    network = idol.IDOL(config)
    return network, to_released(network.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_listed_key_fits_our_network_in_shape_and_type(shared, name):
    rows = listed(shared, name)
    types = {"float32": torch.float32, "int64": torch.int64}
    with torch.device("meta"):
        state = {key: torch.empty(shape, dtype=types[dtype]) for key, shape, dtype in rows}
        config = presets.by_name("ytvis19_r50")
        backbone = BackboneConfig(name=NETWORKS[name])
        network = idol.IDOL(replace(config, model=replace(config.model, backbone=backbone)))
    # On the meta device two copies of one weight cannot be compared: the one that stays counts.
    ours = from_released({k: v for k, v in state.items() if not k.startswith(ALIAS + "bbox_embed")})
    assert compare(network, ours).fits
    own = network.state_dict()
    assert all(own[key].dtype == tensor.dtype for key, tensor in ours.items())
    exported = to_released(own)
    assert [
        (k, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for k, t in exported.items()
    ] == rows


def test_renaming_there_and_back_keeps_every_tensor_and_the_order():
    network, released = small()
    ours = from_released(released)
    assert ours.keys() == network.state_dict().keys()
    again = to_released({key: ours[key] for key in network.state_dict()})
    assert list(again) == list(released)
    assert all(again[key] is ours_tensor for key, ours_tensor in released.items())


def test_each_name_has_one_released_name():
    network, released = small()
    names = [released_name(key) for key in network.state_dict()]
    assert len(set(names)) == len(names)
    assert set(names) < set(released)
    # What is in the released names only is the second copy of the box heads.
    assert {name.replace(ALIAS + "bbox_embed", "detr.detr.bbox_embed") for name in released} == set(
        names
    )


@pytest.mark.parametrize("keys", ["all", "some"])
def test_a_module_prefix_goes_from_all_or_some_keys(keys):
    _, released = small()
    prefixed = {
        f"module.{k}" if keys == "all" or i % 3 else k: v
        for i, (k, v) in enumerate(released.items())
    }
    ours, plain = from_released(prefixed), from_released(released)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


@pytest.mark.parametrize("kept", ["detr.detr.bbox_embed.", ALIAS + "bbox_embed."])
def test_either_copy_of_the_box_heads_is_enough(kept):
    _, released = small()
    one = {k: v for k, v in released.items() if "bbox_embed." not in k or k.startswith(kept)}
    assert len(one) == len(released) - 12
    assert from_released(one).keys() == from_released(released).keys()


def test_copies_of_the_box_heads_that_differ_are_refused_by_name():
    _, released = small()
    key = ALIAS + "bbox_embed.1.layers.2.bias"
    changed = released | {key: released[key] + 1}
    with pytest.raises(CheckpointError, match=r"bbox_embed\.1\.layers\.2\.bias' is stored twice"):
        from_released(changed)
    with pytest.raises(CheckpointError, match="stored twice"):
        from_released(released | {"module.detr.detr.transformer.level_embed": torch.zeros(4, 32)})


def test_equal_copies_pass_even_where_they_are_not_numbers():
    _, released = small()
    for key in [k for k in released if k.endswith("bbox_embed.0.layers.0.bias")]:
        released[key] = torch.full((32,), float("nan"))
    assert "bbox_embed.0.layers.0.bias" in from_released(released)


@pytest.mark.parametrize("dot", [".", "_"])
def test_separate_attention_projections_become_the_fused_one(dot):
    _, released = small()
    apart = dict(released)
    for leaf in ("weight", "bias"):
        parts = apart.pop(f"{ATTENTION}in_proj_{leaf}").chunk(3)
        for name, part in zip("kvq", [parts[1], parts[2], parts[0]], strict=True):
            apart[f"{ATTENTION}{name}_proj{dot}{leaf}"] = part
    ours, whole = from_released(apart), from_released(released)
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


def test_half_of_an_attention_projection_is_refused():
    _, released = small()
    q, _, v = released.pop(f"{ATTENTION}in_proj_weight").chunk(3)
    apart = released | {f"{ATTENTION}q_proj.weight": q, f"{ATTENTION}v_proj.weight": v}
    with pytest.raises(CheckpointError, match=r"in_proj_weight.*q, k, v, of which there are.*'q'"):
        from_released(apart)


def test_norms_folded_into_convolutions_are_refused():
    _, released = small()
    norm = "detr.detr.backbone.0.backbone.res3.0.conv2."
    folded = {k: v for k, v in released.items() if ".norm." not in k}
    folded |= {f"{norm}bias": torch.zeros(128)}
    with pytest.raises(CheckpointError, match=r"folded.*res3\.0\.conv2\.bias"):
        from_released(folded)


def test_counters_of_batch_norms_are_dropped():
    _, released = small()
    counter = "detr.detr.backbone.0.backbone.stem.conv1.norm.num_batches_tracked"
    assert (
        from_released(released | {counter: torch.tensor(7)}).keys()
        == from_released(released).keys()
    )


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "module.model."]
)
@pytest.mark.parametrize("ours", [True, False])
def test_the_prefixes_of_wrappers_are_taken_off_and_logged(prefix, ours, caplog):
    network, released = small()
    state = dict(network.state_dict()) if ours else released
    with caplog.at_level("INFO"):
        read = from_released({prefix + key: tensor for key, tensor in state.items()})
    assert read.keys() == network.state_dict().keys()
    assert f"{len(state)} weights are stored under a wrapper's prefix: '{prefix}" in caplog.text


def test_a_compiled_part_of_a_network_is_read():
    _, released = small()
    compiled = {k.replace("detr.detr.backbone.", "detr.detr.backbone._orig_mod."): released[k]
                for k in released}  # fmt: skip
    assert from_released(compiled).keys() == from_released(released).keys()


def test_our_own_names_stay_as_they_are():
    network, _ = small()
    state = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    assert from_released(state).keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("keys", "owner"),
    [
        (["conv1.weight", "layer1.0.conv1.weight", "fc.bias"], "torchvision"),
        (["backbone.bottom_up.res2.0.conv1.weight"], "detectron2"),
        (["model.encoder.layers.0.fc1.weight"], "Hugging Face"),
        (["transformer.encoder.layers.0.norm1.weight", "query_embed.weight"], "Deformable DETR"),
        (["patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"], "Swin"),
        (["dense/kernel:0"], "another network's file"),
    ],
)
def test_weights_of_another_network_are_named_where_they_are_known(keys, owner):
    with pytest.raises(CheckpointError, match=rf"(?s){len(keys)} of {len(keys)} keys.*{owner}"):
        from_released({key: torch.zeros(1) for key in keys})


def test_one_foreign_key_among_released_ones_is_named():
    _, released = small()
    with pytest.raises(CheckpointError, match=r"1 of \d+ keys .*'criterion.empty_weight'"):
        from_released(released | {"criterion.empty_weight": torch.zeros(2)})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"dense_auxiliary": True}, "dense_head"),
        ({"num_identities": 4}, "identity_head"),
        ({"class_head": "mlp"}, r"class_embed\.0, class_embed\.1"),
        ({"backbone": BackboneConfig(name="tiny", frozen_stages=0)}, r"backbone\.stages"),
    ],
)
def test_what_the_released_network_has_no_place_for_is_not_exported(change, part):
    with pytest.raises(CheckpointError, match=rf"no place for \d+ of \d+ weights, of .*{part}"):
        small(**change)
