"""Weights on disk: our safetensors with their configuration, and the released files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idol import presets
from idol.config import Config, from_dict, to_dict
from idol.model import IDOL

# (released prefix, ours), tried in order; the rest of a key is the same in both.
_RELEASED_PREFIXES = (
    ("detr.detr.backbone.0.backbone.", "backbone."),
    ("detr.detr.transformer.encoder.layers.", "transformer.encoder."),
    ("detr.detr.transformer.decoder.layers.", "transformer.decoder."),
    ("detr.detr.transformer.", "transformer."),
    ("detr.detr.query_embed.", "transformer.query_embed."),
    ("detr.detr.", ""),
    ("detr.mask_head.", "mask_branch."),
    ("detr.reid_embed_head.", "embedding_head."),
    ("detr.controller.", "controller."),
)
# The released decoder registers its box heads a second time under this name.
_ALIAS = "detr.detr.transformer.decoder.bbox_embed."


class CheckpointError(ValueError):
    """A file that is not, or not safely, a checkpoint of this network."""


def from_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released state dict (specification 2) to our names; aliases are dropped.

    Errors: CheckpointError for a key that belongs to no known part.
    """
    renamed = {}
    for key, tensor in state.items():
        name = key.removeprefix("module.")
        if name.startswith(_ALIAS):
            continue
        for released, ours in _RELEASED_PREFIXES:
            if name.startswith(released):
                renamed[ours + name.removeprefix(released)] = tensor
                break
        else:
            raise CheckpointError(
                f"{key!r} is not a key of a released IDOL checkpoint, whose keys start with "
                "'detr.'. Is this another network's file?"
            )
    return renamed


def save(model: IDOL, path: Path | str, weights: dict[str, Tensor] | None = None) -> Path:
    """Write weights and configuration as one safetensors file, atomically.

    weights: a state dict to store instead of the model's own (an average, say)
    """
    from safetensors.torch import save as serialise

    path = Path(path)
    state = weights if weights is not None else model.state_dict()
    state = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    blob = serialise(state, metadata={"config": json.dumps(to_dict(model.config), sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(blob)
    os.replace(temporary, path)
    return path


def load(source: str | os.PathLike[str], *, preset: str | None = None, device: str = "cpu") -> IDOL:
    """A network in eval mode from a preset's name, our checkpoint, or a released .pth.

    source: "tiny" (random weights of that preset), "shipped" (the tiny weights in this package),
            a .safetensors written by save, or a released .pth
    preset: the configuration of a released .pth, which carries none
    Errors: CheckpointError telling what is wrong with the file; FileNotFoundError.
    """
    name = os.fspath(source)
    if name in presets.PRESETS:
        return IDOL(presets.by_name(name)).to(device).eval()
    config, state = read(name)
    if preset is not None:
        config = presets.by_name(preset)
    if config is None:
        raise CheckpointError(
            f"{name} carries no configuration; name it with preset=, one of "
            f"{', '.join(presets.PRESETS)}."
        )
    model = IDOL(config)
    check_state(model, state, name)
    model.load_state_dict(state)
    return model.to(device).eval()


def read(source: str | os.PathLike[str]) -> tuple[Config | None, dict[str, Tensor]]:
    """Configuration and tensors, under our names, of a file that load takes.

    Nothing is checked against a network yet. A released .pth carries no configuration: None.
    Errors: as load
    """
    name = os.fspath(source)
    path = shipped() if name == "shipped" else Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path}. A source is a file or one of: shipped, "
            f"{', '.join(presets.PRESETS)}."
        )
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return None, from_released(_read_pickle(path))


def shipped() -> Path:
    """The tiny weights that come with this package, trained on synthetic videos only."""
    return Path(__file__).parent / "weights" / "tiny.safetensors"


def read_safetensors(path: Path) -> tuple[Config, dict[str, Tensor]]:
    """Configuration and tensors of a file that save wrote.

    Errors: CheckpointError for a damaged file or one without our configuration.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    if "config" not in metadata:
        raise CheckpointError(f"{path} has no 'config' in its metadata: not written by this code")
    return from_dict(Config, json.loads(metadata["config"])), state


def check_state(model: IDOL, state: dict[str, Tensor], origin: str) -> None:
    """Raise CheckpointError listing every missing, unexpected and reshaped key, and bad values."""
    own = model.state_dict()
    problems = [f"missing: {k}" for k in own if k not in state]
    problems += [f"unexpected: {k}" for k in state if k not in own]
    for key, tensor in state.items():
        if key in own and own[key].shape != tensor.shape:
            problems.append(f"{key}: {tuple(tensor.shape)} instead of {tuple(own[key].shape)}")
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            problems.append(f"{key}: has NaN or infinite values")
    if problems:
        shown = "\n  ".join(problems[:12])
        more = f"\n  ... and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise CheckpointError(
            f"{origin} does not fit the {model.config.name!r} network, {len(problems)} problems:"
            f"\n  {shown}{more}\nIs it the right preset and number of classes?"
        )


def adapt_classes(state: dict[str, Tensor], model: IDOL) -> list[str]:
    """Replace class heads of another size by the model's fresh ones, in place.

    For fine-tuning on a dataset with other categories. Returns the keys replaced.
    """
    own = model.state_dict()
    heads = [
        k
        for k, v in state.items()
        if k.startswith(("class_embed.", "dense_head."))
        and k in own
        and own[k].shape[1:] == v.shape[1:]
        and len(own[k]) != len(v)
    ]
    for key in heads:
        state[key] = own[key].clone()
    return heads


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        blob: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: reading it would execute code ({error}). Only files of plain "
            "tensors are loaded; convert it where you trust it."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no torch file: {error}") from error
    state = blob.get("model", blob) if isinstance(blob, dict) else blob
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    return state
