"""Networks of clips from a preset, from our checkpoints, and from the authors' files.

Names of the authors' tensors ↔ ours: SeqFormer specification 2, IFC specification 2.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from idol import clip_presets, presets
from idol.addresses import shown
from idol.clips.ifc import IFC
from idol.clips.network import ClipNetwork
from idol.clips.seqformer import SeqFormer
from idol.config import Config
from idol.config.categories import differing
from idol.weights import checkpoint
from idol.weights.imagenet import resnet_name
from idol.weights.released import from_released, unwrapped
from idol.weights.report import CheckpointError, compare

_log = logging.getLogger(__name__)

_IFC_PREFIXES = (
    ("detr.backbone.0.backbone.", "backbone."),
    ("detr.transformer.encoder.enc_layers.", "transformer.enc_layers."),
    ("detr.transformer.encoder.bus_layers.", "transformer.bus_layers."),
    ("detr.transformer.clip_decoder.layers.", "transformer.decoder."),
    ("detr.transformer.clip_decoder.norm.", "transformer.norm."),
    ("detr.mask_head.out_lay.", "mask_head."),
    ("detr.", ""),
)
# What the released files hold and no output depends on: a projection that the encoder has and never
# calls, and the class weights of the loss, which are LossConfig.no_object here.
_UNUSED = re.compile(
    r"transformer\.encoder\.\d+\.self_attn\.output_proj_box\.(weight|bias)|criterion\.empty_weight"
)
_BOX_PROJECTION = re.compile(r"(transformer\.decoder\.\d+\.)cross_attn\.(output_proj_box\.)")
_ORIGINAL_CLASSES = 42  # rows of the first repository's class heads: category ids 0..41


def make(config: Config) -> ClipNetwork:
    """The network of clips that a configuration describes, with random weights.

    Raises: ValueError: it describes IDOL.
    """
    if config.model.method == "idol":
        raise ValueError(
            f"{config.name!r} configures IDOL, which takes single frames: use idol.build or "
            f"idol.load. Presets of clips are {', '.join(clip_presets.PRESETS)}."
        )
    return (SeqFormer if config.model.method == "seqformer" else IFC)(config)


def build(preset: str, *, device: str | torch.device = "cpu") -> ClipNetwork:
    """A network of clips with random weights, in eval mode, for training.

    preset: a name of idol.clip_presets.PRESETS, "seqformer_ytvis19_r50"; its parts in any order,
            and ytvis19 where no data set is named: "ifc_r101"
    Raises: ValueError: the preset is unknown, or IDOL's.
    """
    return make(presets.by_name(preset)).to(device).eval()


def load(
    source: str | os.PathLike[str],
    *,
    preset: str | None = None,
    device: str | torch.device = "cpu",
) -> ClipNetwork:
    """A trained network of clips in eval mode, from our checkpoint or the authors' file.

    source: a .safetensors written by idol.weights.save, a released .pth, or one of these by
            "hf://owner/repo/file" or "https://..." (see idol.weights.hub.fetch)
    preset: the configuration, as of `build`. None: the file's own; of an authors' file the one of
            YouTube-VIS 2019 or COCO that its shapes fit. For one of our own files it replaces
            everything but the network
    Raises:
        CheckpointError: the file is damaged or does not fit; .report has every key.
        FileNotFoundError: there is no such file.
        FetchError: a remote file could not be had.
        ValueError: the preset is unknown, or IDOL's.
    """
    wanted = None if preset is None else make_config(preset)
    name = shown(os.fspath(source))
    stored, state = read(source)
    if stored is not None and stored.model.method == "idol":
        raise CheckpointError(f"{name} holds IDOL, not a network of clips: use idol.load.")
    config = wanted or stored or _fitting(state, name)
    if stored is not None and preset is not None:
        checkpoint.check_same_network(stored, config, name, preset, False)
        if other := differing(stored.categories, config.categories):
            raise CheckpointError(
                f"{name} was trained on other categories than {preset!r}: {other}"
            )
        config = replace(config, categories=stored.categories, category_ids=stored.category_ids)
    model = make(config)
    checkpoint.check_state(model, state, name)
    model.load_state_dict(state)
    return model.to(device).eval()


def make_config(preset: str) -> Config:
    """The configuration of a network of clips by its name. Raises: ValueError: it is none."""
    config = presets.by_name(preset)
    with torch.device("meta"):
        make(config)
    return config


def read(source: str | os.PathLike[str]) -> tuple[Config | None, dict[str, Tensor]]:
    """Configuration, None of an authors' file, and float32 tensors by our names.

    Raises: as `load`; none is checked against a network.
    """
    path = checkpoint.locate(source)
    config, state = checkpoint.read_file(path)
    if config is None:
        try:
            state = released(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return config, checkpoint.in_float32(state, path)


def released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors by our names; one by our names stays as it is.

    IFC's; SeqFormer's of VNext and of its first repository. Tensors that no output depends on are
    left out: SeqFormer's encoder.*.output_proj_box, IFC's criterion.empty_weight.
    Raises: CheckpointError: as idol.weights.from_released.
    """
    bare = unwrapped(state)
    if not any(key.startswith("detr.") for key in bare):
        return bare
    if "detr.transformer.memory_bus" in bare:
        named = {_renamed(key): tensor for key, tensor in bare.items()}
    else:
        named = from_released(_of_first_repository(bare))
        named = {_BOX_PROJECTION.sub(r"\1\2", key): tensor for key, tensor in named.items()}
    unused = [key for key in named if _UNUSED.fullmatch(key)]
    if unused:
        _log.info("%d tensors left out that no output depends on: %s", len(unused), unused[0])
    return {key: tensor for key, tensor in named.items() if key not in unused}


def _renamed(key: str) -> str:
    theirs, ours = next((p for p in _IFC_PREFIXES if key.startswith(p[0])), ("", ""))
    return ours + key.removeprefix(theirs)


def _of_first_repository(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of wjf5203/SeqFormer as those of VNext; class heads by category id to 40 classes."""
    if any(key.startswith("detr.detr.") for key in state):
        return state
    named = {}
    for key, tensor in state.items():
        body = "detr.backbone.0.body."
        if key.startswith(body):
            key = "detr.backbone.0.backbone." + resnet_name(key.removeprefix(body))
        if ".class_embed." in key and len(tensor) == _ORIGINAL_CLASSES:
            tensor = tensor[1:-1].clone()
        named[f"detr.{key}"] = tensor
    return named


def _fitting(state: Mapping[str, Tensor], name: str) -> Config:
    """The first preset whose network has these names and shapes."""
    shapes = {key: tensor.to("meta") for key, tensor in state.items()}
    counts = {}
    method = "ifc" if "transformer.memory_bus" in state else "seqformer"
    # Those of YouTube-VIS 2021 have the shapes of 2019's.
    for known in (n for n in clip_presets.PRESETS if n.startswith(method) and "ytvis21" not in n):
        counts[known] = compare(_shapes(known), shapes).count
        if counts[known] == 0:
            _log.info("%s: preset %r, by its shapes", name, known)
            return presets.by_name(known)
    nearest = min(counts, key=counts.__getitem__)
    raise CheckpointError(
        f"{name} carries no configuration and fits the network of no preset; name one with "
        f"preset=. The nearest is {nearest!r}, with {counts[nearest]} differences. There are: "
        f"{', '.join(clip_presets.PRESETS)}."
    )


@lru_cache(maxsize=32)
def _shapes(preset: str) -> dict[str, Tensor]:
    """The state dict of a preset's network, without memory."""
    with torch.device("meta"):
        return dict(make(presets.by_name(preset)).state_dict())
