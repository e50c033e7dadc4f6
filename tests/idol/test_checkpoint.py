"""Weights on disk: exact round trips, and damaged or foreign files refused with the reason."""

import pickle

import pytest
import torch

import idol
from idol import checkpoint
from idol.checkpoint import CheckpointError
from idol.config import override


class Payload:
    """What a file that runs code when read looks like."""

    def __reduce__(self):
        return (print, ("code ran",))


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(idol.load("tiny"), tmp_path / "tiny.safetensors")


def test_a_saved_model_loads_with_its_configuration_bit_for_bit(tmp_path):
    config = override(idol.presets.by_name("tiny"), ["model.num_classes=7", "model.num_queries=9"])
    model = idol.IDOL(config)
    loaded = idol.load(checkpoint.save(model, tmp_path / "x.safetensors"))
    assert loaded.config == config
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    again = checkpoint.save(idol.load(saved), tmp_path / "again.safetensors")
    assert again.read_bytes() == saved.read_bytes()


def test_truncated_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        idol.load(saved)


def test_nan_weights_are_refused_by_name(tmp_path):
    model = idol.load("tiny")
    with torch.no_grad():
        model.class_embed[1].bias[0] = float("nan")
    path = checkpoint.save(model, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"class_embed\.1\.bias: has NaN"):
        idol.load(path)


def test_weights_of_another_architecture_list_what_does_not_fit(saved):
    with pytest.raises(CheckpointError, match=r"(?s)problems:.*right preset"):
        idol.load(saved, preset="ytvis19_r50")


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"model": Payload()}, path)
    with pytest.raises(CheckpointError, match="execute code"):
        idol.load(path, preset="ytvis19_r50")
    assert "code ran" not in capsys.readouterr().out


def test_garbage_and_foreign_state_dicts_are_refused(tmp_path):
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"PK\x03\x04 this is no archive")
    with pytest.raises(CheckpointError, match="truncated or no torch file"):
        idol.load(garbage, preset="tiny")
    foreign = tmp_path / "foreign.pth"
    torch.save({"layer1.weight": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="not a key of a released IDOL checkpoint"):
        idol.load(foreign, preset="tiny")
    numbers = tmp_path / "numbers.pth"
    numbers.write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(CheckpointError):
        idol.load(numbers, preset="tiny")


def test_a_released_file_needs_a_preset_and_a_missing_file_says_what_is_known(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({}, path)
    with pytest.raises(CheckpointError, match="carries no configuration"):
        idol.load(path)
    with pytest.raises(FileNotFoundError, match="ytvis19_r50"):
        idol.load(tmp_path / "nowhere.safetensors")


def test_class_heads_of_another_size_are_the_only_ones_adapted(saved):
    model = idol.IDOL(override(idol.presets.by_name("tiny"), ["model.num_classes=9"]))
    state = dict(idol.load(saved).state_dict())
    before = dict(state)
    replaced = checkpoint.adapt_classes(state, model)
    expected = {f"class_embed.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert set(replaced) == expected | {"dense_head.weight", "dense_head.bias"}
    assert all(torch.equal(state[k], before[k]) for k in state if k not in replaced)
    checkpoint.check_state(model, state, "adapted")
