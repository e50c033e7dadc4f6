"""Models by name: each leads to its file and preset, and never to random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import idol
from idol import presets
from idol.network.model import IDOL
from idol.weights import checkpoint, hub, provenance, zoo
from idol.weights.hub import FetchError
from idol.weights.report import CheckpointError

RELEASED = [model for model in idol.models() if model.name != "shipped"]


def test_names_are_no_names_of_presets_and_each_comes_once() -> None:
    names = [model.name for model in idol.models()]
    assert len(set(names)) == len(names)
    assert not {*names} & {*presets.PRESETS}
    # Every released file of the specification: 4 of YouTube-VIS 2019, 3 of 2021, 2 of OVIS, 3 more.
    assert len(RELEASED) == 12


@pytest.mark.parametrize("model", RELEASED, ids=lambda model: model.name)
def test_a_released_model_has_its_preset_and_the_size_of_its_tensors(model: zoo.Model) -> None:
    assert provenance.named(model.source.rpartition("/")[2]) == model.preset
    assert (model.ap is None) == model.name.startswith("coco")
    with torch.device("meta"):
        network = IDOL(presets.by_name(model.preset))
    assert model.megabytes == round(4e-6 * sum(t.numel() for t in network.state_dict().values()))
    assert model.megabytes == 173 or "r50" not in model.name


def test_a_name_loads_the_file_it_stands_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    path = tmp_path / "any.pth"
    torch.manual_seed(0)
    with torch.device("cpu"):
        network = checkpoint.build("ytvis19_r50")
    checkpoint.export_released(network, path)

    def fetch(source: str) -> Path:
        asked.append(source)
        return path

    monkeypatch.setattr(hub, "fetch", fetch)
    loaded = idol.load("YTVIS19-R50")
    assert asked == ["hf://QHL067/VNext_ECCV/IDOL/YTVIS19_R50_502AP.pth"]
    assert loaded.config.name == "ytvis19_r50"
    assert loaded.config.categories[0] == "person"
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=0, atol=0)


def test_without_a_network_a_name_is_told_with_its_size_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FetchError) as caught:
        idol.load("ovis-swinl")
    message = str(caught.value)
    for part in ("ovis-swinl (856 MB and more)", "not in the cache", "pass the file's path"):
        assert part in message
    assert "\n" not in message


def test_the_name_of_a_preset_is_no_weights_and_the_near_name_is_proposed() -> None:
    with pytest.raises(CheckpointError, match=r"untrained network.*Did you mean 'ytvis19-r50'\?"):
        idol.load("ytvis19_r50")
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'ovis-r50'\?"):
        idol.load("ovis-r5")


def test_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert zoo.find("ovis-r50") is not None
    Path("ovis-r50").write_bytes(b"")
    assert zoo.find("ovis-r50") is None
    with pytest.raises(CheckpointError, match="is empty"):
        idol.load("ovis-r50")


def test_the_table_has_a_line_for_each(capsys: Any) -> None:
    lines = zoo.table().splitlines()
    assert len(lines) == 1 + len(idol.models())
    assert lines[0].split() == list(zoo._SHOWN)
    assert "50.2" in next(line for line in lines if line.startswith("ytvis19-r50 "))
