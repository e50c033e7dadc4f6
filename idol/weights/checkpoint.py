"""Weights on disk: our safetensors with their configuration, and the released files."""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from idol import presets
from idol.addresses import is_remote, shown
from idol.config import Config
from idol.config.categories import differing
from idol.files import whole_file
from idol.network.layers import Network
from idol.network.model import IDOL
from idol.weights import hub, provenance, safetensors_file, torch_file, zoo
from idol.weights.provenance import TRAINING_HEADS
from idol.weights.released import from_released, to_released
from idol.weights.report import CheckpointError, LoadReport, compare

_log = logging.getLogger(__name__)

_CLASS_HEADS = ("class_embed.", *TRAINING_HEADS)
# Fields of ModelConfig and BackboneConfig that by themselves change nothing in eval mode.
_TRAINING_FIELDS = (
    "backbone", "dropout", "dense_auxiliary", "num_identities", "checkpoint_activations",
    "frozen_stages", "swin_drop_path",
)  # fmt: skip


def save(model: Network, path: Path | str, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write weights and configuration as one safetensors file, whole or not at all.

    The same weights and configuration give the same bytes.

    weights: a state dict to store instead of the model's own (an average, say)
    Raises: CheckpointError: a file that `load` would refuse: the model is folded, or the weights
        are not this model's, or NaN or infinite. Nothing is written.
    """
    state = _storable(model, f"saved to {path}", weights)
    # Without references that another machine may not have.
    backbone = model.backbone.portable(model.config.model.backbone)
    config = replace(model.config, model=replace(model.config.model, backbone=backbone))
    return safetensors_file.write(Path(path), config, state)


def _storable(
    model: Network, what: str, state: Mapping[str, Tensor] | None = None
) -> Mapping[str, Tensor]:
    """The state dict to write, once it is known that `load` would take it."""
    if model.folded or model.backbone.folded:
        raise CheckpointError(
            f"a folded model cannot be {what}: its norms are part of its convolutions, which "
            "cannot be undone. Save before fold(), or load the checkpoint again."
        )
    state = model.state_dict() if state is None else state
    check_state(model, state, f"what should be {what}")
    return state


def load(
    source: str | os.PathLike[str],
    *,
    preset: str | None = None,
    device: str | torch.device = "cpu",
    reset_classes: bool = False,
) -> IDOL:
    """A trained network in eval mode from our checkpoint or a released file.

    source:        a name of idol.models() ("shipped": the tiny weights in this package), a
                   .safetensors written by `save`, a released .pth, or one of these by
                   "hf://owner/repo/file" or "https://..." (see idol.weights.hub.fetch)
    preset:        the configuration of a file that neither carries one nor tells it by a released
                   name. For one of our own files it replaces everything but the network
    reset_classes: replace class heads of another size than the preset's, or for other
                   categories, by random ones
    Raises:
        CheckpointError: the file is damaged, does not fit (.report has every key), or `source`
            is the name of a preset, which is an untrained network (see `build`).
        FileNotFoundError: there is no such file.
        FetchError: a remote file could not be had.
        ValueError: the preset is unknown.
    """
    if preset is not None:
        presets.by_name(preset)  # a misspelt name is told before anything is downloaded
    listed = zoo.find(_spelt(source))
    name = shown(_spelt(source if listed is None else listed.source))
    stored, state = read(source)
    config = _configuration(stored, state, name, preset)
    known, wanted = known_categories(source, stored), config.categories
    if reset_classes and stored is not None and preset is not None:
        wanted = presets.by_name(preset).categories or wanted
    # Of another number, the heads do not fit, which is told below with their shapes.
    other = differing(known, wanted) if len(known) == len(wanted) else ""
    if other and not reset_classes:
        raise CheckpointError(
            f"{name} was trained on other categories than preset {preset!r} names: {other}. Name "
            "the preset of its data set."
        )
    if other:
        ids = tuple(range(1, len(wanted) + 1))
        config = replace(config, categories=wanted, category_ids=ids)
    model = IDOL(config)
    if reset_classes and (replaced := adapt_classes(state, model, all_heads=bool(other))):
        _log.info("%s: %s start from random weights", name, _heads(replaced))
    dropped, added = adapt_training_heads(state, model)
    if added and not reset_classes:
        raise CheckpointError(
            f"{name} has no fitting {_heads(added)}, which this configuration trains. Pass "
            "reset_classes=True to start it from random weights."
        )
    if dropped:
        _log.info("%s: %s left out, which only training uses", name, _heads(dropped))
    check_state(model, state, name)
    if stored is not None and preset is not None:
        check_same_network(stored, config, name, preset, reset_classes)
    model.load_state_dict(state)
    return model.to(device).eval()


def build(preset: str, *, device: str | torch.device = "cpu") -> IDOL:
    """A network of idol.presets with random weights, in eval mode.

    Raises: ValueError: the preset is unknown.
    """
    return IDOL(presets.by_name(preset)).to(device).eval()


from_pretrained = load
"""load under the name that other libraries give it."""


def read(source: str | os.PathLike[str]) -> tuple[Config | None, dict[str, Tensor]]:
    """Configuration, None for a released .pth, and tensors of a file that `load` takes.

    The tensors have our names and are float32 or whole numbers. None is checked against a network.
    Raises: as `load`.
    """
    path = locate(source)
    config, state = read_file(path)
    if config is None:
        try:
            state = from_released(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return config, in_float32(state, path)


def locate(source: str | os.PathLike[str]) -> Path:
    """The file on this machine that a source of `load` names. Raises: as `load`."""
    spelt = _spelt(source)
    name = shown(spelt)
    if spelt in presets.PRESETS:
        raise CheckpointError(
            f"{name!r} names an untrained network, not weights: idol.build({name!r}) makes one. "
            f"{zoo.likely(spelt)}A source is a file, hf://owner/repo/file, https://... or a name "
            "of idol.models(), such as 'shipped'."
        )
    listed = zoo.find(spelt)
    if listed is None and not is_remote(spelt) and not Path(spelt).exists():
        raise FileNotFoundError(
            f"no checkpoint at {name}. {zoo.likely(spelt)}A source is a file, "
            "hf://owner/repo/file, https://... or a name of idol.models(), such as 'shipped', the "
            "tiny weights in this package."
        )
    if listed is None:
        return hub.fetch(spelt)
    return shipped() if listed.name == "shipped" else zoo.fetch(listed)


def in_float32(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors of the file at path, all that are no whole numbers as float32."""
    other = {str(t.dtype) for t in state.values() if t.is_floating_point()} - {"torch.float32"}
    if other:
        _log.info("%s: stored as %s, read as float32", path, ", ".join(sorted(other)))
    return {k: t.float() if t.is_floating_point() else t for k, t in state.items()}


def read_file(path: Path) -> tuple[Config | None, dict[str, Tensor]]:
    """Configuration, if it has one, and tensors as stored, of a safetensors or torch file.

    Raises: CheckpointError: the file is empty, damaged, of another kind, or would execute code.
    """
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes). Copy or download it again.")
    with path.open("rb") as file:
        head = file.read(9)
    # safetensors: the length of its header, then the header, a JSON object.
    if head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 32:
        return safetensors_file.read(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is damaged or no safetensors file: {torch_file.kind(head)}.")
    return None, torch_file.read(path)


def shipped() -> Path:
    """The tiny weights that come with this package, trained on synthetic videos only."""
    return Path(__file__).parent / "tiny.safetensors"


def export_released(model: IDOL, path: Path | str) -> Path:
    """Write a .pth that the released code loads, bit for bit the same, whole or not at all.

    Raises: CheckpointError: the released code cannot express the network: another backbone,
        training heads, scaled mask coordinates, folded norms. Nothing is written.
    """
    state = _storable(model, f"exported to {path}")
    scale = model.config.model.mask_coordinate_scale
    if scale != 1.0:
        raise CheckpointError(
            f"model.mask_coordinate_scale is {scale}, but the released code always uses raw "
            "pixels (1.0): it would draw other masks from these weights."
        )
    # Set apart first, so that the two names of a box head share one tensor in the file.
    tensors = to_released(safetensors_file.apart(state))
    with whole_file(path) as temporary:
        torch.save({"model": tensors}, temporary)
    return Path(path)


def check_state(model: Network, state: Mapping[str, Tensor], origin: str) -> None:
    """Raise CheckpointError where compare finds any difference; its .report has all of them."""
    report = compare(model, state)
    if report.fits:
        return
    problems = "problem" if report.count == 1 else "problems"
    message = f"{origin} does not fit the {model.config.name!r} network, {report.count} {problems}:"
    lines = [message, *report.lines()]
    clips = model.config.model.method != "idol"
    advice = "Is it the right preset and number of classes?" if clips else _advice(report, state)
    raise CheckpointError("\n  ".join(lines) + f"\n{advice}", report)


def known_categories(source: str | os.PathLike[str], stored: Config | None) -> tuple[str, ...]:
    """Names by label of the categories that weights were trained on; () where nothing tells.

    stored: what `read` found in the source; None: a released file, told by its name
    """
    if stored is not None:
        return stored.categories
    listed = zoo.find(_spelt(source))
    if listed is not None:
        return presets.by_name(listed.preset).categories
    told = provenance.named(re.split(r"[/\\]", shown(_spelt(source)))[-1])
    return presets.by_name(told).categories if told else ()


def adapt_classes(
    state: dict[str, Tensor], model: Network, *, all_heads: bool = False
) -> list[str]:
    """Replace class heads of another size or kind by the model's own, which are random, in place.

    Class heads are those of every decoder layer, the dense head and the identity head.

    all_heads: those of the same size too, which were trained on other categories
    returns:   the keys replaced
    """
    own = model.state_dict()
    heads = [
        key
        for key, value in state.items()
        if key.startswith(_CLASS_HEADS)
        and key in own
        and own[key].shape[1:] == value.shape[1:]
        and (all_heads or len(own[key]) != len(value))
    ]
    theirs, ours = ([key for key in s if key.startswith("class_embed.")] for s in (state, own))
    # Linear or of several layers.
    if {".layers." in key for key in theirs} != {".layers." in key for key in ours}:
        for key in theirs:
            del state[key]
        heads += ours
    for key in heads:
        state[key] = own[key].clone()
    return heads


def adapt_training_heads(state: dict[str, Tensor], model: Network) -> tuple[list[str], list[str]]:
    """Drop training heads that the model has not, add random ones that it has, in place.

    An identity head of another number of instances belongs to another training set: it is
    dropped and added.
    returns: the keys dropped, the keys added
    """
    own = {k: v for k, v in model.state_dict().items() if k.startswith(TRAINING_HEADS)}
    dropped = [
        key
        for key, value in state.items()
        if key.startswith(TRAINING_HEADS)
        and (key not in own or (key.startswith("identity_") and own[key].shape != value.shape))
    ]
    for key in dropped:
        del state[key]
    added = [key for key in own if key not in state]
    for key in added:
        state[key] = own[key].clone()
    return dropped, added


def _spelt(source: str | os.PathLike[str]) -> str:
    """A source as text; pathlib takes one of the slashes of a reference that it was given."""
    return re.sub(r"^(hf|https?):/(?=[^/])", r"\1://", os.fspath(source))


def _configuration(
    stored: Config | None, state: Mapping[str, Tensor], name: str, preset: str | None
) -> Config:
    """The configuration to load with: the preset asked for, the stored one, or the name's."""
    if preset is not None:
        config = presets.by_name(preset)
        if stored is None or stored.model.num_classes != config.model.num_classes:
            return config
        # A preset names no categories; the heads are those that the file was trained with.
        return replace(config, categories=stored.categories, category_ids=stored.category_ids)
    if stored is not None:
        return stored
    if told := provenance.named(re.split(r"[/\\]", name)[-1]):
        _log.info("%s: preset %r, by the file's name", name, told)
        return presets.by_name(told)
    found = provenance.candidates(state)
    raise CheckpointError(
        f"{name} carries no configuration; name it with preset=. {_propose(found)} "
        f"There are: {presets.listing()}.",
        None if found.fitting else found.report,
    )


def _propose(found: provenance.Candidates) -> str:
    if found.fitting:
        return f"Its weights fit the network of {', '.join(map(repr, found.fitting))}."
    if found.other_classes:
        return (
            "No preset has its number of classes, but with reset_classes=True its weights fit the "
            f"network of {', '.join(map(repr, found.other_classes))}."
        )
    lines = "; ".join(map(str.strip, found.report.lines(limit=2)))
    return (
        f"Its weights fit no preset's network; the nearest is {found.nearest!r}, with "
        f"{found.report.count} differences ({lines})."
    )


def check_same_network(
    stored: Config, config: Config, name: str, preset: str, reset_classes: bool
) -> None:
    """Refuse a preset whose network has the same shapes but computes something else."""
    ignored = (*_TRAINING_FIELDS, *(("num_classes", "class_head") if reset_classes else ()))
    different = []
    for part in ("model", "model.backbone"):
        one, other = map(attrgetter(part), (stored, config))
        for key in [field.name for field in fields(one) if field.name not in ignored]:
            a, b = getattr(one, key), getattr(other, key)
            if a != b:
                different.append(f"{part}.{key} is {a!r} in the file and {b!r} in the preset")
    if different:
        raise CheckpointError(
            f"{name} was trained as another network than preset {preset!r} describes: "
            f"{'; '.join(different)}. Leave preset= out to use the file's own configuration."
        )


def _advice(report: LoadReport, state: Mapping[str, Tensor]) -> str:
    """What to do about weights that do not fit, as a sentence."""
    keys = {*report.missing, *report.unexpected, *(entry[0] for entry in report.reshaped)}
    if not keys and not report.retyped:
        return "These weights are spoilt: use an earlier checkpoint."
    heads = not report.retyped and all(key.startswith(_CLASS_HEADS) for key in keys)
    if heads and len(keys) == len(report.reshaped):
        _, had, wanted = report.reshaped[0]
        return (
            f"The class heads are for {had[0]} classes instead of {wanted[0]}: name a preset with "
            f"{had[0]} classes, or start the heads from random weights with reset_classes=True and "
            "train them."
        )
    if heads and report.missing and report.unexpected:
        return (
            "The class heads are of another kind (model.class_head): start them from random "
            "weights with reset_classes=True and train them."
        )
    found = provenance.candidates(state)
    if found.fitting or found.other_classes:
        return _propose(found)
    return "Is it the right preset and number of classes?"


def _heads(keys: list[str]) -> str:
    return " and ".join(sorted({key.partition(".")[0] for key in keys}))
