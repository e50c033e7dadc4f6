"""Our format: a safetensors file with the configuration and a checksum in its metadata."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idol.config import Config, from_dict, to_dict
from idol.files import parse_json, whole_file
from idol.weights.report import CheckpointError

FORMAT = 1
"""Version of the format: raised when a reader of the one before would misunderstand a file."""
# One entry only: safetensors writes several in an order that changes from run to run.
_METADATA = "idol"
_BARE_CONFIG = "config"  # the entry of files from before the version was written
_RETIRED = (("detect", "reject_limit"), ("pairs", "max_reject_fraction"))  # jobs' --reject-limit


def write(path: Path, config: Config, state: Mapping[str, Tensor]) -> Path:
    """Store tensors (of any device, views allowed) and configuration, whole or not at all.

    The same tensors and configuration give the same bytes.
    """
    from safetensors.torch import save_file

    tensors = apart(state)
    values = to_dict(config)
    entry = {"format": FORMAT, "config": values, "crc32": _checksum(values, tensors)}
    entry["names_crc32"] = _names_checksum(tensors)
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={_METADATA: json.dumps(entry, sort_keys=True)})
    return path


def read(path: Path) -> tuple[Config | None, dict[str, Tensor]]:
    """Configuration (None in a file that `write` did not make) and tensors, names as stored.

    Raises: CheckpointError: the file is damaged, or of a newer version of this code.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or no safetensors file: {error}. Copy or download it "
            "again."
        ) from error
    if _METADATA not in metadata and _BARE_CONFIG not in metadata:
        return None, state
    try:
        if _METADATA in metadata:
            entry = parse_json(metadata[_METADATA])
        else:
            bare = parse_json(metadata[_BARE_CONFIG])
            entry = {"format": FORMAT, "config": bare, "crc32": _checksum(bare, state)}
        version = entry["format"]
        if not isinstance(version, int) or version > FORMAT:
            raise CheckpointError(
                f"{path} has format {version}, but this version of the code reads up to {FORMAT}. "
                "Update idol-vis."
            )
        values, checksum = entry["config"], entry["crc32"]
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a damaged configuration: {error!r}") from error
    # Files from before it was written lack the second.
    names = entry.get("names_crc32", _names_checksum(state))
    if checksum != _checksum(values, state) or names != _names_checksum(state):
        raise CheckpointError(
            f"{path} is damaged: it has another checksum than when it was written. Copy or "
            "download it again."
        )
    for section, name in _RETIRED:
        values.get(section, {}).pop(name, None)
    try:
        # Fields that the file lacks take their defaults, with which a network saved before they
        # existed computes what it did then.
        return from_dict(Config, values), state
    except ValueError as error:
        raise CheckpointError(
            f"{path} has a configuration that this version of the code does not understand: "
            f"{error} Was it written by a newer one? Update idol-vis."
        ) from error


def apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory, as both formats need them."""
    layout = torch.contiguous_format
    return {
        key: tensor.detach().to("cpu", copy=True, memory_format=layout)
        for key, tensor in state.items()
    }


def _names_checksum(state: Mapping[str, Tensor]) -> int:
    """CRC-32 of every tensor's name, type and shape, which no content tells."""
    told = [[key, str(tensor.dtype), list(tensor.shape)] for key, tensor in sorted(state.items())]
    return zlib.crc32(json.dumps(told).encode())


def _checksum(config: Any, state: Mapping[str, Tensor]) -> int:
    """CRC-32 of the configuration and of all tensors, by name; safetensors itself has none."""
    value = zlib.crc32(json.dumps(config, sort_keys=True).encode())
    for _, tensor in sorted(state.items()):
        value = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return value
