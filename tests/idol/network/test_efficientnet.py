"""EfficientNet-Lite0: shapes, its arithmetic against plain functions, and a file's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from idol import IDOL, presets
from idol.config import override
from idol.network.efficientnet import EfficientNetLite0
from idol.weights.imagenet import load_imagenet
from idol.weights.report import CheckpointError

BLOCKS = (
    [(3, 1, 1)] + [(3, 2, 6), (3, 1, 6)] + [(5, 2, 6), (5, 1, 6)] + [(3, 2, 6)] + [(3, 1, 6)] * 2
    + [(5, 1, 6)] * 3 + [(5, 2, 6)] + [(5, 1, 6)] * 3 + [(3, 1, 6)]
)  # fmt: skip
"""Kernel, stride and expansion of the 16 blocks, from the paper's table."""
CHANNELS = (16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)


def published() -> dict[str, Tensor]:
    """Random weights under the names and shapes of the package's file."""
    torch.manual_seed(0)
    made: dict[str, Tensor] = {}

    def norm(name: str, channels: int) -> None:
        made[f"{name}.weight"] = torch.rand(channels) + 0.5
        made[f"{name}.running_var"] = torch.rand(channels) + 0.5
        for part in ("bias", "running_mean"):
            made[f"{name}.{part}"] = 0.1 * torch.randn(channels)
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    made["_conv_stem.weight"] = 0.2 * torch.randn(32, 3, 3, 3)
    norm("_bn0", 32)
    inputs = 32
    for n, ((kernel, _, expansion), outputs) in enumerate(zip(BLOCKS, CHANNELS, strict=True)):
        middle, name = inputs * expansion, f"_blocks.{n}"
        if expansion > 1:
            made[f"{name}._expand_conv.weight"] = 0.2 * torch.randn(middle, inputs, 1, 1)
            norm(f"{name}._bn0", middle)
        made[f"{name}._depthwise_conv.weight"] = 0.2 * torch.randn(middle, 1, kernel, kernel)
        norm(f"{name}._bn1", middle)
        made[f"{name}._project_conv.weight"] = 0.1 * torch.randn(outputs, middle, 1, 1)
        norm(f"{name}._bn2", outputs)
        inputs = outputs
    made["_conv_head.weight"] = torch.randn(8, 320, 1, 1)
    norm("_bn1", 8)
    made |= {"_fc.weight": torch.randn(5, 8), "_fc.bias": torch.randn(5)}
    return made


def expected(images: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """The maps of strides 8, 16, 32, function by function."""

    def normed(x: Tensor, name: str) -> Tensor:
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight"))
        mean, variance, scale = (part[:, None, None] for part in parts)
        bias = weights[f"{name}.bias"][:, None, None]
        return (x - mean) / (variance + 1e-3).sqrt() * scale + bias

    def convolved(x: Tensor, name: str, stride: int, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        total = max(weight.shape[-1] - stride, 0)
        low = total // 2
        padded = F.pad(x, (low, total - low, low, total - low))
        return F.conv2d(padded, weight, stride=stride, groups=groups)

    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    x = ((images * deviation + mean) - 0.5) / 0.5
    x = F.relu6(normed(convolved(x, "_conv_stem", 2), "_bn0"))
    found = []
    for n, (_, stride, expansion) in enumerate(BLOCKS):
        before, name = x, f"_blocks.{n}"
        if expansion > 1:
            x = F.relu6(normed(convolved(x, f"{name}._expand_conv", 1), f"{name}._bn0"))
        depthwise = convolved(x, f"{name}._depthwise_conv", stride, x.shape[1])
        x = F.relu6(normed(depthwise, f"{name}._bn1"))
        x = normed(convolved(x, f"{name}._project_conv", 1), f"{name}._bn2")
        if stride == 1 and x.shape == before.shape:
            x = x + before
        if n in (4, 10, 15):
            found.append(x)
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the package ships it."""
    path = tmp_path_factory.mktemp("weights") / "efficientnet-lite0.pth"
    torch.save(published(), path)
    return path


def test_maps_of_a_published_file_are_those_of_plain_functions(stored: Path) -> None:
    backbone = EfficientNetLite0().double().eval()
    dropped = load_imagenet(backbone, stored)
    heads = [name for name in dropped if not name.endswith("num_batches_tracked")]
    assert {name.split(".")[0] for name in heads} == {"_conv_head", "_bn1", "_fc"}
    images = torch.randn(2, 3, 64, 96).double()
    with torch.inference_mode():
        maps = backbone(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(40, 8, 12), (112, 4, 6), (320, 2, 3)]
    weights = {name: value.double() for name, value in published().items()}
    for mine, theirs in zip(maps, expected(images, weights), strict=True):
        # The numbers of normalisation are stored as float32.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_file_of_another_width_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    weights = published()
    weights["_blocks.5._project_conv.weight"] = torch.zeros(88, 240, 1, 1)
    torch.save(weights, tmp_path / "wide.pth")
    backbone = EfficientNetLite0()
    before = backbone.blocks[5].project.weight.clone()
    with pytest.raises(CheckpointError, match=r"do not fit this EfficientNetLite0, 1 problems"):
        load_imagenet(backbone, tmp_path / "wide.pth")
    assert torch.equal(backbone.blocks[5].project.weight, before)


def test_a_network_trains_on_it() -> None:
    config = override(presets.tiny(), ["model.backbone.name=efficientnet_lite0",
                                       "model.num_queries=10"])  # fmt: skip
    model = IDOL(config).train()
    outputs = model(torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool))
    outputs.embeddings.sum().backward()
    assert model.backbone.first.weight.grad.abs().sum() > 0
    assert "efficientnet_lite0" in repr(config.model.backbone)
