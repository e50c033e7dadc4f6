"""Weights on disk: our safetensors with their configuration, and the released files."""

from __future__ import annotations

import difflib
import logging
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idol import presets
from idol.config import Config
from idol.network.model import IDOL
from idol.weights import hub, provenance, safetensors_file, torch_file
from idol.weights.provenance import TRAINING_HEADS
from idol.weights.released import PREFIXES as _RELEASED_PREFIXES
from idol.weights.released import from_released, to_released
from idol.weights.report import CheckpointError, LoadReport, compare

__all__ = [
    "CheckpointError",
    "LoadReport",
    "_RELEASED_PREFIXES",
    "adapt_classes",
    "adapt_training_heads",
    "build",
    "check_state",
    "compare",
    "export_released",
    "from_pretrained",
    "from_released",
    "load",
    "read",
    "save",
    "shipped",
    "to_released",
]

_log = logging.getLogger(__name__)

_CLASS_HEADS = ("class_embed.", *TRAINING_HEADS)
# Fields of ModelConfig and BackboneConfig that change neither a shape nor an output in eval mode.
_TRAINING_FIELDS = frozenset(
    {
        "dropout", "dense_auxiliary", "num_identities", "checkpoint_activations",
        "frozen_stages", "swin_drop_path",
    }
)  # fmt: skip


def save(model: IDOL, path: Path | str, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write weights and configuration as one safetensors file, atomically and bit for bit.

    The same weights and configuration give the same bytes. What was at path stays whole until the
    new file is complete on the disk.
    weights: a state dict to store instead of the model's own (an average, say)
    Errors: CheckpointError, with nothing written, for a folded model, for weights that are not
            this model's, and for NaN or infinite values: load would refuse that file, so it would
            only take the place of a good one.
    """
    path = Path(path)
    _check_not_folded(model, f"saved to {path}")
    state = dict(weights if weights is not None else model.state_dict())
    check_state(model, state, f"what should be saved to {path}")
    return safetensors_file.write(path, _portable(model), state)


def load(
    source: str | os.PathLike[str],
    *,
    preset: str | None = None,
    device: str | torch.device = "cpu",
    reset_classes: bool = False,
) -> IDOL:
    """A network in eval mode from a preset's name, our checkpoint, or a released file.

    source:        "tiny" (random weights of that preset), "shipped" (the tiny weights in this
                   package), a .safetensors written by save, a released .pth, the same by
                   "hf://owner/repo/file" or "https://..." (see idol.weights.hub.fetch)
    preset:        the configuration of a file that carries none, such as a released one; its name
                   is enough where it is a released file's. Of one of our own files, everything
                   but the network may be replaced by it
    device:        where the network goes
    reset_classes: start class heads anew that have another number of classes than the preset
    Errors: CheckpointError telling what is wrong with the file, its .report every key that does
            not fit; FileNotFoundError; hub.FetchError; ValueError for an unknown preset.
    """
    name = _spelt(source)
    if name in presets.PRESETS:
        return IDOL(presets.by_name(name)).to(device).eval()
    if preset is not None:
        presets.by_name(preset)  # a misspelt name is told before anything is downloaded
    stored, state = read(name)
    config = _configuration(stored, state, name, preset)
    model = IDOL(config)
    if reset_classes and (replaced := adapt_classes(state, model)):
        _log.info("%s: %s start anew", name, _heads(replaced))
    dropped, added = adapt_training_heads(state, model)
    if added and not reset_classes:
        raise CheckpointError(
            f"{name} has no {_heads(added)}, which this configuration trains. Pass "
            "reset_classes=True to start it from random weights."
        )
    if dropped:
        _log.info("%s: %s left out, which only training uses", name, _heads(dropped))
    check_state(model, state, name)
    if stored is not None and preset is not None:
        _check_same_network(stored, config, name, preset, reset_classes)
    model.load_state_dict(state)
    return model.to(device).eval()


def build(preset: str, *, device: str | torch.device = "cpu") -> IDOL:
    """A preset's network with random weights in eval mode, to be trained or to load weights into.

    preset: a name of idol.presets
    device: where the network goes
    Errors: ValueError for an unknown preset.
    """
    return IDOL(presets.by_name(preset)).to(device).eval()


from_pretrained = load
"""load under the name that other libraries give it."""


def read(source: str | os.PathLike[str]) -> tuple[Config | None, dict[str, Tensor]]:
    """Configuration and tensors, under our names, of a file that load takes.

    Nothing is checked against a network yet. What is stored in another floating-point precision
    becomes float32. A released .pth carries no configuration: None.
    Errors: as load
    """
    name = _spelt(source)
    if name == "shipped":
        path = shipped()
    elif hub.is_remote(name):
        path = hub.fetch(name)
    else:
        if not Path(name).exists():
            known = ["shipped", *presets.PRESETS]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise FileNotFoundError(
                f"no checkpoint at {name}.{hint} A source is a file, hf://owner/repo/file, "
                f"https://... or one of: {', '.join(known)}."
            )
        path = hub.fetch(name)  # a folder is an error there, with the files in it
    config, state = _read_file(path)
    return config, _in_float32(state, name)


def shipped() -> Path:
    """The tiny weights that come with this package, trained on synthetic videos only."""
    return Path(__file__).parent / "tiny.safetensors"


def export_released(model: IDOL, path: Path | str) -> Path:
    """Write a .pth that the released code loads: {"model": ...}, its names and its order.

    Reading it back gives the same weights bit for bit. Written atomically, as save.
    Errors: CheckpointError, with nothing written, for a network that the released code cannot
            express: another backbone, training-only heads, scaled mask coordinates, folded norms.
    """
    path = Path(path)
    _check_not_folded(model, f"exported to {path}")
    check_state(model, model.state_dict(), f"what should be exported to {path}")
    scale = model.config.model.mask_coordinate_scale
    if scale != 1.0:
        raise CheckpointError(
            f"model.mask_coordinate_scale is {scale}, but the released code always uses raw "
            "pixels (1.0): it would draw other masks from these weights."
        )
    # Set apart first: the two names of a box head share one tensor then, and so in the file.
    tensors = to_released(safetensors_file.apart(model.state_dict()))
    return safetensors_file.atomically(path, lambda file: torch.save({"model": tensors}, file))


def check_state(model: IDOL, state: Mapping[str, Tensor], origin: str) -> None:
    """Raise CheckpointError where compare finds any difference; its .report has all of them."""
    report = compare(model, state)
    if report.fits:
        return
    lines = "\n  ".join(report.lines())
    raise CheckpointError(
        f"{origin} does not fit the {model.config.name!r} network, {report.count} "
        f"{'problem' if report.count == 1 else 'problems'}:\n  {lines}\n{_advice(report, state)}",
        report,
    )


def adapt_classes(state: dict[str, Tensor], model: IDOL) -> list[str]:
    """Replace class heads of another size, or of the other kind, by the model's own, in place.

    For fine-tuning on a dataset with other categories: the model's are fresh. Class heads are
    those of every decoder layer, the dense head and the identity head.
    returns: the keys replaced
    """
    own = model.state_dict()
    heads = [
        key
        for key, value in state.items()
        if key.startswith(_CLASS_HEADS)
        and key in own
        and own[key].shape[1:] == value.shape[1:]
        and len(own[key]) != len(value)
    ]
    if _head_kind(state) != _head_kind(own):
        for key in [key for key in state if key.startswith("class_embed.")]:
            del state[key]
        heads += [key for key in own if key.startswith("class_embed.")]
    for key in heads:
        state[key] = own[key].clone()
    return heads


def adapt_training_heads(state: dict[str, Tensor], model: IDOL) -> tuple[list[str], list[str]]:
    """Drop heads that only training uses and the model has not, add fresh ones it has, in place.

    returns: the keys dropped, the keys added
    """
    own = model.state_dict()
    dropped = [k for k in state if k.startswith(TRAINING_HEADS) and k not in own]
    for key in dropped:
        del state[key]
    added = [k for k in own if k.startswith(TRAINING_HEADS) and k not in state]
    for key in added:
        state[key] = own[key].clone()
    return dropped, added


def _spelt(source: str | os.PathLike[str]) -> str:
    """A source as text; pathlib takes one of the slashes of a reference that it was given."""
    return re.sub(r"^(hf|https?):/(?=[^/])", r"\1://", os.fspath(source))


def _read_file(path: Path) -> tuple[Config | None, dict[str, Tensor]]:
    """Configuration and tensors under our names; the kind of file is told by its content."""
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes). Copy or download it again.")
    with path.open("rb") as file:
        head = file.read(9)
    # safetensors: the length of its header, then the header, a JSON object.
    length = struct.unpack("<Q", head[:8])[0] if len(head) == 9 else 0
    if head[8:] == b"{" and length < 1 << 32:
        config, state = safetensors_file.read(path)
        if config is not None:
            return config, state
    elif path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is damaged or no safetensors file: {torch_file.kind(head)}.")
    else:
        state = torch_file.read(path)
    try:
        return None, from_released(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _configuration(
    stored: Config | None, state: Mapping[str, Tensor], name: str, preset: str | None
) -> Config:
    """The configuration to load with: the preset asked for, the stored one, or the name's."""
    if preset is not None:
        config = presets.by_name(preset)
        if stored is None:
            return config
        if stored.model.num_classes == config.model.num_classes:
            # A preset names no categories; the heads are those that the file was trained with.
            config = replace(config, categories=stored.categories, category_ids=stored.category_ids)
        return config
    if stored is not None:
        return stored
    file = re.split(r"[/\\]", name.partition("#")[0])[-1]
    told = provenance.named(file)
    if told is not None:
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
        fitting = ", ".join(map(repr, found.fitting))
        return f"Its weights fit the network of {fitting}."
    if found.other_classes:
        return (
            "No preset has its number of classes, but with reset_classes=True its weights fit the "
            f"network of {', '.join(map(repr, found.other_classes))}."
        )
    lines = "; ".join(line.strip() for line in found.report.lines(limit=2))
    return (
        f"Its weights fit no preset's network; the nearest is {found.nearest!r}, with "
        f"{found.report.count} differences ({lines})."
    )


def _check_same_network(
    stored: Config, config: Config, name: str, preset: str, reset_classes: bool
) -> None:
    """Refuse a preset whose network has the same shapes but computes something else."""
    ignored = _TRAINING_FIELDS | ({"num_classes", "class_head"} if reset_classes else set())
    different = _differences(stored.model, config.model, "model.", ignored)
    if different:
        raise CheckpointError(
            f"{name} was trained as another network than preset {preset!r} describes: "
            f"{'; '.join(different)}. Leave preset= out to use the file's own configuration."
        )


def _differences(one: Any, other: Any, path: str, ignored: frozenset[str] | set[str]) -> list[str]:
    """Fields in which two configurations of one class differ, as "path: value, value"."""
    found = []
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in ignored or a == b:
            continue
        if is_dataclass(a):
            found += _differences(a, b, f"{path}{field.name}.", ignored)
        else:
            found.append(f"{path}{field.name} is {a!r} in the file and {b!r} in the preset")
    return found


def _head_kind(state: Mapping[str, Tensor]) -> str | None:
    """linear or mlp, by the names of a state dict's class heads; None without any."""
    keys = [key for key in state if key.startswith("class_embed.")]
    return ("mlp" if any(".layers." in key for key in keys) else "linear") if keys else None


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
            f"{had[0]} classes, or start the heads anew with reset_classes=True and train them."
        )
    if heads and report.missing and report.unexpected:
        return (
            "The class heads are of another kind (model.class_head): start them anew with "
            "reset_classes=True and train them."
        )
    found = provenance.candidates(state)
    if found.fitting or found.other_classes:
        return _propose(found)
    return "Is it the right preset and number of classes?"


def _heads(keys: list[str]) -> str:
    return " and ".join(sorted({key.partition(".")[0] for key in keys}))


def _in_float32(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Every floating-point tensor in float32, with a note in the log where that is a change."""
    other = sorted({str(t.dtype) for t in state.values() if t.is_floating_point()})
    other = [dtype for dtype in other if dtype != "torch.float32"]
    if other:
        _log.info("%s: stored as %s, read as float32", name, ", ".join(other))
    return {k: t.float() if t.is_floating_point() else t for k, t in state.items()}


def _check_not_folded(model: IDOL, what: str) -> None:
    if getattr(model, "folded", False) or getattr(model.backbone, "folded", False):
        raise CheckpointError(
            f"a folded model cannot be {what}: its norms are part of its convolutions, which "
            "cannot be undone. Save before fold(), or load the checkpoint again."
        )


def _portable(model: IDOL) -> Config:
    """The model's configuration, without references that another machine may not have."""
    backbone = model.backbone.portable(model.config.model.backbone)
    return replace(model.config, model=replace(model.config.model, backbone=backbone))
