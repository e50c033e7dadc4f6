"""Weights on disk: exact round trips, and damaged or foreign files refused with the reason."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import idol
from idol import presets
from idol.config import override, to_dict
from idol.weights import checkpoint, safetensors_file
from idol.weights.released import to_released
from idol.weights.report import CheckpointError, compare
from tests.idol import oracle_recipe as recipe
from tests.idol.file_server import serving

ROOT = Path(__file__).resolve().parents[3]


def tiny(*changes):
    return idol.IDOL(override(presets.by_name("tiny"), changes))


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value), key


@pytest.fixture
def saved(tmp_path) -> Path:
    return checkpoint.save(idol.build("tiny"), tmp_path / "tiny.safetensors")


@pytest.fixture(scope="module")
def released_r50(shared, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The file that the recipe's R50 weights would have been released as."""
    state = recipe.released_state(shared / "reference/state_dict_r50.txt")
    path = tmp_path_factory.mktemp("released") / "YTVIS19_R50_502AP.pth"
    torch.save({"model": state, "optimizer": {"state": {}}, "iteration": 11999}, path)
    return path, state


# ---------------------------------------------------------------- our own format


def test_a_saved_model_loads_with_its_configuration_bit_for_bit(tmp_path):
    model = tiny("model.num_classes=7", "model.num_queries=9", "tracker.tau=0.25")
    loaded = idol.load(checkpoint.save(model, tmp_path / "new" / "x.safetensors"))
    assert loaded.config == model.config
    assert not loaded.training
    assert_same(loaded.state_dict(), model.state_dict())


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    again = checkpoint.save(idol.load(saved), tmp_path / "again.safetensors")
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_whoever_may_read_new_files_may_read_a_checkpoint(saved, tmp_path):
    (tmp_path / "any").touch()
    assert saved.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_other_weights_of_the_same_network_can_be_stored(tmp_path):
    model = tiny()
    shared = torch.zeros(2, 64, 64)
    average = {k: v + 1 for k, v in model.state_dict().items()}
    # Views of one tensor, as an average kept in one block of memory would have.
    average["transformer.encoder.0.self_attn.value_proj.weight"] = shared[0]
    average["transformer.encoder.1.self_attn.value_proj.weight"] = shared[1]
    average["embedding_head.layers.0.weight"] = shared[1]
    path = checkpoint.save(model, tmp_path / "x.safetensors", average)
    assert_same(idol.load(path).state_dict(), average)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tiny(), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_weights_that_could_not_be_loaded_again_are_not_saved(tmp_path):
    model, path = tiny(), tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.save(model, path, {})
    with torch.no_grad():
        model.class_embed[1].bias[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"(?s)NaN.*class_embed\.1\.bias.*spoilt"):
        checkpoint.save(model, path)
    assert not path.exists()


def test_a_folded_model_is_neither_saved_nor_exported(tmp_path):
    model = idol.build("tiny")
    model.folded = True
    with pytest.raises(CheckpointError, match="folded model cannot be saved"):
        checkpoint.save(model, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="folded model cannot be exported"):
        checkpoint.export_released(model, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def rewrite(path, edit):
    """Store a file's tensors again with edited metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    save_file(load_file(path), path, metadata=edit(metadata, load_file(path)))
    return path


def edited(field, value):
    """Another value of a configuration's field, and the checksum that belongs to it."""

    def edit(metadata, state):
        entry = json.loads(metadata["idol"])
        entry["config"][field] = value
        entry["crc32"] = safetensors_file._checksum(entry["config"], state)
        return {"idol": json.dumps(entry)}

    return edit


def test_files_from_before_the_version_and_before_a_field_take_its_default(saved):
    config = to_dict(presets.by_name("tiny"))
    del config["tracker"]["tau"], config["model"]["class_head"], config["category_ids"]
    rewrite(saved, lambda *_: {"config": json.dumps(config)})
    assert idol.load(saved).config == presets.by_name("tiny")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (edited("modle", {}), r"no field 'modle'.*Did you mean 'model'.*Update idol-vis"),
        (edited("model", {"num_classes": -1}), "num_classes must be positive"),
        (edited("model", {"num_classes": "4"}), "must be int, got '4'"),
        (lambda m, _: {"idol": m["idol"][:-9]}, "damaged configuration"),
        (lambda *_: {"idol": "{}"}, "damaged configuration"),
        (lambda *_: {"idol": "[]"}, "damaged configuration"),
        (lambda m, _: {"idol": m["idol"].replace("tiny", "tony")}, "another checksum"),
        (
            lambda *_: {"idol": '{"format": 99, "settings": {}}'},
            "format 99.* reads up to 1",
        ),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(saved, edit, reason):
    with pytest.raises(CheckpointError, match=rf"(?s)tiny\.safetensors.*{reason}"):
        idol.load(rewrite(saved, edit))


@pytest.mark.parametrize("part", [0.0, 1e-5, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, part):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"truncated|empty|damaged"):
        idol.load(saved)


def test_a_damaged_header_is_refused(saved):
    content = bytearray(saved.read_bytes())
    content[12:20] = b"\xff" * 8
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        idol.load(saved)


def test_a_flipped_bit_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-4 * 1000] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="another checksum"):
        idol.load(saved)


@pytest.mark.parametrize(
    ("right", "wrong"), [(b"stages.0.conv1", b"stages.0&conv1"), (b'"F32"', b'"I32"')]
)
def test_another_name_or_type_of_a_tensor_is_noticed(saved, right, wrong):
    content = saved.read_bytes()
    assert right in content
    saved.write_bytes(content.replace(right, wrong, 1))
    with pytest.raises(CheckpointError, match="another checksum"):
        checkpoint.read_file(saved)


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_file_with_any_bytes_changed_loads_unchanged_or_is_refused(small_file, changes):
    path, content, state = small_file
    changed = bytearray(content)
    for position, value in changes:
        changed[position % len(changed)] = value
    path.write_bytes(changed)
    with contextlib.suppress(CheckpointError):
        config, read = checkpoint.read(path)
        assert config in (presets.by_name("tiny"), None)
        assert_same(read, state)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> tuple[Path, bytes, dict[str, torch.Tensor]]:
    """A path, the content of a file of ours with three small tensors, and those."""
    path = tmp_path_factory.mktemp("small") / "x.safetensors"
    state = {f"mask_branch.{i}": torch.randn(2, i + 1) for i in range(3)}
    safetensors_file.write(path, presets.by_name("tiny"), state)
    return path, path.read_bytes(), state


def test_nan_weights_are_refused_by_name(saved):
    state = load_file(saved)
    state["class_embed.1.bias"][0] = float("nan")
    state["bbox_embed.0.layers.0.weight"][0, 0] = float("inf")
    save_file(state, saved, {"config": json.dumps(to_dict(presets.by_name("tiny")))})
    with pytest.raises(CheckpointError, match=r"(?s)NaN.*class_embed\.1\.bias") as caught:
        idol.load(saved)
    assert set(caught.value.report.not_finite) == {
        "class_embed.1.bias", "bbox_embed.0.layers.0.weight",
    }  # fmt: skip


def test_stored_half_precision_is_read_as_float32_and_noted(saved, caplog):
    state = {k: v.bfloat16() for k, v in load_file(saved).items()}
    save_file(state, saved, {"config": json.dumps(to_dict(presets.by_name("tiny")))})
    with caplog.at_level("INFO", "idol.weights.checkpoint"):
        loaded = idol.load(saved).state_dict()
    assert_same(loaded, {k: v.float() for k, v in state.items()})
    assert "stored as torch.bfloat16, read as float32" in caplog.text


# ---------------------------------------------------------------- which configuration


def test_a_preset_replaces_everything_but_the_network_of_our_own_files(tmp_path, monkeypatch):
    other = override(presets.by_name("tiny"), ["tracker.tau=0.125", "model.dropout=0.5"])
    monkeypatch.setitem(presets.PRESETS, "other", lambda: other)
    model = idol.IDOL(
        override(
            presets.by_name("tiny"),
            ["train.steps=3", 'categories=["a","b","c","d"]', "category_ids=[3,1,4,2]"],
        )
    )
    path = checkpoint.save(model, tmp_path / "x.safetensors")
    loaded = idol.load(path, preset="other")
    assert loaded.config.tracker.tau == 0.125
    assert loaded.config.train.steps == presets.by_name("tiny").train.steps
    # The heads are those of the categories that the file was trained with.
    assert loaded.config.categories == ("a", "b", "c", "d")
    assert loaded.config.category_ids == (3, 1, 4, 2)


def test_a_preset_that_computes_something_else_with_the_same_weights_is_refused(
    tmp_path, monkeypatch
):
    other = override(presets.by_name("tiny"), ["model.mask_coordinate_scale=1.0"])
    monkeypatch.setitem(presets.PRESETS, "other", lambda: other)
    path = checkpoint.save(tiny(), tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=r"mask_coordinate_scale is 8\.0 in the file and 1\.0"
    ):
        idol.load(path, preset="other")


def test_weights_of_another_architecture_list_everything_that_does_not_fit(saved):
    with pytest.raises(
        CheckpointError, match=r"(?s)problems:.*and \d+ more.*fit the network of 'tiny'"
    ) as caught:
        idol.load(saved, preset="ytvis19_r50")
    report = caught.value.report
    assert len(report.missing) > 300
    assert "backbone.stages.0.conv1.weight" in report.unexpected
    assert pickle.loads(pickle.dumps(caught.value)).report == report


def test_a_misspelt_preset_or_source_tells_the_nearest(saved, tmp_path):
    with pytest.raises(ValueError, match=r"Did you mean 'ytvis19_r50'"):
        idol.load(saved, preset="ytvis19_r5")
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at ytvis19_r5\. .*hf://.*'shipped'"
    ):
        idol.load("ytvis19_r5")
    with pytest.raises(ValueError, match=r"is a folder.*Did you mean .*tiny\.safetensors"):
        idol.load(tmp_path)


@pytest.mark.parametrize("name", ["tiny", "ytvis19_r50"])
def test_a_presets_name_is_no_source_of_trained_weights(name):
    for read in (idol.load, checkpoint.read):
        with pytest.raises(CheckpointError, match=rf"untrained network.*idol\.build\('{name}'\)"):
            read(name)
    with pytest.raises(ValueError, match="Did you mean 'tiny'"):
        idol.build("tinny")


def test_a_released_file_is_known_by_its_name_and_the_log_says_so(tmp_path, caplog, monkeypatch):
    small = override(
        presets.by_name("coco_r50"),
        ["model.width=32", "model.num_queries=5", "model.decoder_layers=1", "model.num_classes=3"],
    )
    monkeypatch.setattr(presets, "PRESETS", {"ytvis19_r50": lambda: small, "tiny": presets.tiny})
    model = idol.IDOL(small)
    path = checkpoint.export_released(model, tmp_path / "YTVIS19_R50_502AP.pth")
    with caplog.at_level("INFO", "idol.weights.checkpoint"):
        assert_same(idol.load(path).state_dict(), model.state_dict())
    assert "preset 'ytvis19_r50', by the file's name" in caplog.text
    path = path.rename(tmp_path / "model_final.pth")
    with pytest.raises(
        CheckpointError, match=r"name it with preset=.*fit the network of 'ytvis19_r"
    ):
        idol.load(path)
    path = path.rename(tmp_path / "OVIS_R50_294AP.pth")
    with pytest.raises(CheckpointError, match="carries no configuration"):
        idol.load(path)


def test_a_file_without_configuration_tells_which_presets_take_it_with_new_class_heads(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(presets, "PRESETS", {"tiny": presets.tiny})
    path = tmp_path / "x.pth"
    torch.save(tiny("model.num_classes=9", "model.dense_auxiliary=false").state_dict(), path)
    with pytest.raises(CheckpointError, match=r"with reset_classes=True .* of 'tiny'"):
        idol.load(path)
    state = tiny().state_dict()
    del state["transformer.level_embed"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"the nearest is 'tiny', with 1 diff.*level_embed"):
        idol.load(path)


def test_our_own_names_in_a_torch_file_are_read_with_a_preset(tmp_path):
    model = tiny()
    torch.save(model.state_dict(), tmp_path / "x.pth")
    assert_same(idol.load(tmp_path / "x.pth", preset="tiny").state_dict(), model.state_dict())


def test_released_names_in_a_safetensors_file_are_read_too(tmp_path, monkeypatch):
    small = override(presets.by_name("ytvis19_r50"), ["model.width=32", "model.decoder_layers=1"])
    monkeypatch.setitem(presets.PRESETS, "small", lambda: small)
    model = idol.IDOL(small)
    state = {k: v.clone() for k, v in to_released(model.state_dict()).items()}
    save_file(state, tmp_path / "x.safetensors")
    loaded = idol.load(tmp_path / "x.safetensors", preset="small")
    assert_same(loaded.state_dict(), model.state_dict())


# ---------------------------------------------------------------- other classes


def test_other_class_heads_start_anew_only_when_asked(saved, monkeypatch):
    nine = override(presets.by_name("tiny"), ["model.num_classes=9"])
    monkeypatch.setitem(presets.PRESETS, "nine", lambda: nine)
    with pytest.raises(CheckpointError, match=r"for 4 classes instead of 9.*reset_classes=True"):
        idol.load(saved, preset="nine")
    torch.manual_seed(1)
    model = idol.load(saved, preset="nine", reset_classes=True)
    assert model.config.model.num_classes == 9
    before = idol.load(saved).state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(("class_embed.", "dense_head.")):
            assert len(value) == 9
        else:
            assert torch.equal(value, before[key])
    # They start as those of a fresh network: every class at a score of 0.01.
    assert torch.allclose(model.class_embed[0].bias.sigmoid(), torch.tensor(0.01), atol=1e-6)


def test_a_released_file_is_not_read_with_the_categories_of_another_benchmark(
    tmp_path, monkeypatch
):
    # Small networks under the names of the released ones: 40 categories each.
    for name in ("ytvis19_r50", "ytvis21_r50"):
        known = presets.by_name(name)
        sizes = ["width=32", "num_queries=5", "decoder_layers=1", "num_classes=40"]
        small = override(presets.by_name("coco_r50"), [f"model.{size}" for size in sizes])
        small = replace(
            small, name=name, categories=known.categories, category_ids=known.category_ids
        )
        monkeypatch.setitem(presets.PRESETS, name, lambda small=small: small)
    model = idol.IDOL(presets.by_name("ytvis19_r50"))
    path = tmp_path / "YTVIS19_R50_502AP.pth"
    checkpoint.export_released(model, path)
    assert idol.load(path).config.categories[0] == "person"
    with pytest.raises(CheckpointError, match="label 0 is 'person' there and 'airplane' here"):
        idol.load(path, preset="ytvis21_r50")
    reset = idol.load(path, preset="ytvis21_r50", reset_classes=True)
    assert reset.config.categories[0] == "airplane"
    assert not torch.equal(reset.class_embed[0].weight, model.class_embed[0].weight)


@pytest.mark.parametrize("had", ["linear", "mlp"])
def test_class_heads_of_another_kind_start_anew_when_asked(tmp_path, monkeypatch, had):
    wants = {"linear": "mlp", "mlp": "linear"}[had]
    other = override(presets.by_name("tiny"), [f"model.class_head={wants}"])
    monkeypatch.setitem(presets.PRESETS, "other", lambda: other)
    path = checkpoint.save(tiny(f"model.class_head={had}"), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)missing:.*another kind.*reset_classes"):
        idol.load(path, preset="other")
    assert idol.load(path, preset="other", reset_classes=True).config == other


def test_heads_that_only_training_uses_are_added_when_asked_and_dropped_unasked(
    tmp_path, monkeypatch
):
    more = override(presets.by_name("tiny"), ["model.num_identities=6"])
    less = override(presets.by_name("tiny"), ["model.dense_auxiliary=false"])
    monkeypatch.setitem(presets.PRESETS, "more", lambda: more)
    monkeypatch.setitem(presets.PRESETS, "less", lambda: less)
    path = checkpoint.save(tiny(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"has no fitting identity_head.*reset_classes=True"):
        idol.load(path, preset="more")
    assert len(idol.load(path, preset="more", reset_classes=True).identity_head.weight) == 6
    assert idol.load(path, preset="less").dense_head is None


def test_an_identity_head_of_another_training_set_is_replaced_by_a_random_one(tmp_path):
    model = tiny("model.num_identities=6")
    state = dict(tiny("model.num_identities=9").state_dict())
    head = {"identity_head.weight", "identity_head.bias"}
    assert [set(keys) for keys in checkpoint.adapt_training_heads(state, model)] == [head, head]
    checkpoint.check_state(model, state, "adapted")


def test_class_heads_of_another_size_are_the_only_ones_adapted(saved):
    model = tiny("model.num_classes=9")
    state = dict(idol.load(saved).state_dict())
    before = dict(state)
    replaced = checkpoint.adapt_classes(state, model)
    expected = {f"class_embed.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert set(replaced) == expected | {"dense_head.weight", "dense_head.bias"}
    assert all(torch.equal(state[k], before[k]) for k in state if k not in replaced)
    checkpoint.check_state(model, state, "adapted")


# ---------------------------------------------------------------- the released files


def test_the_released_r50_loads_completely_and_is_exported_bit_for_bit(released_r50, tmp_path):
    path, state = released_r50
    model = idol.load(path)
    assert model.config.name == "ytvis19_r50"
    assert compare(model, checkpoint.read(path)[1]).fits
    exported = checkpoint.export_released(model, tmp_path / "again.pth")
    blob = torch.load(exported, weights_only=True)
    assert list(blob) == ["model"]
    assert list(blob["model"]) == list(state)
    assert_same(blob["model"], state)
    # Both names of a box head share their memory in the file, as they do in the released network.
    last = "bbox_embed.5.layers.2.weight"
    both = [blob["model"][p + last] for p in ("detr.detr.", "detr.detr.transformer.decoder.")]
    assert both[0].data_ptr() == both[1].data_ptr()


def exports_every_bit(shared, tmp_path, name, preset):
    state = recipe.released_state(shared / f"reference/state_dict_{name}.txt")
    if name == "swinL":
        state = with_indices(shared, state)
    path = tmp_path / "released.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    model = idol.load(path, preset=preset)
    blob = torch.load(
        checkpoint.export_released(model, tmp_path / "again.pth"), weights_only=True, mmap=True
    )
    assert list(blob["model"]) == list(state)
    assert_same(blob["model"], state)


def with_indices(shared, state):
    """The recipe fills no whole numbers: Swin's are those of its 12 × 12 windows."""
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    y, x = y.flatten(), x.flatten()
    index = (y[:, None] - y + 11) * 23 + (x[:, None] - x + 11)
    keys = [
        line.split("\t")[0]
        for line in (shared / "reference/state_dict_swinL.txt").read_text().splitlines()
    ]
    return {key: state[key] if key in state else index.clone() for key in keys}


def test_the_released_r101_loads_completely_and_is_exported_bit_for_bit(
    shared, tmp_path, monkeypatch
):
    r101 = override(presets.by_name("ytvis19_r50"), ["model.backbone.name=resnet101"])
    monkeypatch.setitem(presets.PRESETS, "r101", lambda: r101)
    exports_every_bit(shared, tmp_path, "r101", "r101")


@pytest.mark.slow
def test_the_released_swin_loads_completely_and_is_exported_bit_for_bit(
    shared, tmp_path, monkeypatch
):
    swin = override(presets.by_name("ytvis19_r50"), ["model.backbone.name=swin"])
    monkeypatch.setitem(presets.PRESETS, "swin", lambda: swin)
    exports_every_bit(shared, tmp_path, "swinL", "swin")


def test_a_released_file_with_another_backbone_or_other_classes_is_refused(
    released_r50, monkeypatch
):
    path, _ = released_r50
    r101 = override(presets.by_name("ytvis19_r50"), ["model.backbone.name=resnet101"])
    monkeypatch.setitem(presets.PRESETS, "r101", lambda: r101)
    fitting = r"(?s)255 missing.*fit the network of 'ytvis19_r50', 'ytvis21_r50'"
    with pytest.raises(CheckpointError, match=fitting) as caught:
        idol.load(path, preset="r101")
    assert "backbone.res4.6.conv1.weight" in caught.value.report.missing
    assert len(caught.value.report.missing) == caught.value.report.count == 255
    with pytest.raises(CheckpointError, match=r"for 40 classes instead of 25.*reset_classes=True"):
        idol.load(path, preset="ovis_r50")


def test_a_network_that_the_released_code_cannot_express_is_not_exported(tmp_path):
    with pytest.raises(CheckpointError, match=r"mask_coordinate_scale is 8\.0"):
        checkpoint.export_released(tiny(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"no place for .*backbone"):
        checkpoint.export_released(tiny("model.mask_coordinate_scale=1"), tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- foreign and broken files


class Payload:
    """What a file that runs code when read looks like."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"model": Payload()}, path)
    with pytest.raises(CheckpointError, match=r"would execute code of .*print"):
        idol.load(path, preset="ytvis19_r50")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 this is no archive", "truncated or damaged|no safetensors file"),
        (b'{"error": "not found"}', "JSON text"),
        (b"<!DOCTYPE html>\n<html></html>", "web page"),
        (pickle.dumps([1, 2], protocol=2), "plain Python pickle"),
        (b"\x08\x07 some other framework", "begins with|Only torch.save's"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_what_it_is(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        idol.load(tmp_path / name, preset="tiny")


def test_another_networks_weights_are_refused(tmp_path):
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64)}
    torch.save(resnet, tmp_path / "resnet50.pth")
    save_file(resnet, tmp_path / "resnet50.safetensors")
    for name in ("resnet50.pth", "resnet50.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{name}: 2 of 2 keys.*torchvision"):
            idol.load(tmp_path / name, preset="ytvis19_r50")


# ---------------------------------------------------------------- from elsewhere


def test_a_checkpoint_comes_from_a_url_with_its_digest(saved, tmp_path, monkeypatch):
    from idol.weights import hub

    monkeypatch.setenv("IDOL_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        server.files["/tiny.safetensors"] = saved.read_bytes()
        url = f"{server.url}/tiny.safetensors"
        loaded = idol.from_pretrained(f"{url}#sha256={hub.sha256_of(saved)}")
        assert_same(loaded.state_dict(), idol.load(saved).state_dict())
        # pathlib joins the two slashes of a URL; it is understood all the same.
        assert_same(idol.load(Path(url)).state_dict(), loaded.state_dict())
        with pytest.raises(ValueError, match="SHA-256"):
            idol.load(f"{url}#sha256={'0' * 64}")
        # A secret in the query of a URL is in no message about the weights either.
        with pytest.raises(CheckpointError, match="problems") as caught:
            idol.load(f"{url}?token=hidden", preset="ytvis19_r50")
        assert "hidden" not in str(caught.value)


def test_the_names_users_rely_on_work_where_no_other_library_is_installed(saved):
    program = textwrap.dedent(
        """
        import sys
        absent = {"ray", "pyarrow", "mlflow", "huggingface_hub", "transformers", "torchvision"}
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in absent:
                    raise ModuleNotFoundError(f"{name} is not installed here", name=name)
        sys.meta_path.insert(0, Absent())
        import torch, idol
        from ops import ms_deform_attn
        model = idol.load(sys.argv[1])
        assert isinstance(model, idol.IDOL) and not model.training
        assert idol.presets.by_name("ytvis19_r50").model.num_classes == 40
        assert idol.load("shipped").config.model.num_queries == 40
        with torch.inference_mode():
            outputs = model(torch.zeros(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
        assert outputs.logits.shape == (3, 1, 40, 4)
        for dataset in ("ytvis", "ovis"):
            idol.tracker.TrackerConfig.released(dataset)
        tracker = idol.tracker.Tracker(idol.tracker.TrackerConfig.robust())
        idol.tracker.TrackerConfig.paper()
        truth = {"videos": [{"id": 1, "width": 4, "height": 4, "length": 1, "file_names": ["a"]}],
                 "categories": [{"id": 1, "name": "x"}], "annotations": []}
        assert "AP" in idol.evaluation.evaluate(truth, []).stats
        value = torch.zeros(1, 4, 2, 8)
        out = ms_deform_attn(value, [(2, 2)], torch.full((1, 3, 2, 1, 4, 2), 0.5),
                             torch.full((1, 3, 2, 1, 4), 0.25))
        assert out.shape == (1, 3, 16)
        try:
            idol.load("hf://owner/repo/x.pth")
        except ModuleNotFoundError as error:
            assert "huggingface_hub" in str(error)
        else:
            raise AssertionError
        assert not absent & {name.split(".")[0] for name in sys.modules}
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
