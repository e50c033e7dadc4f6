"""Files of torch.save, read without ever executing what is in them."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idol.weights.report import CheckpointError
from idol.weights.safetensors_file import apart

# Keys under which trainers store the weights, beside optimiser, scheduler and counters.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
# How every file that torch.save wrote before zip archives (torch 1.6) begins.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What torch's unpickler and zipfile raise for damaged files and files of another kind.
_DAMAGE = (
    RuntimeError, EOFError, ValueError, OSError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class _Inert:
    """Stands for a value beside the weights; takes any arguments and keeps nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# Trainers store these beside the weights (a loss, a step, the command line). The names are bound
# to _Inert, not to the real classes, so nothing of NumPy, argparse or pathlib runs either.
_HARMLESS = (
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "numpy.ndarray", "numpy.dtype", "argparse.Namespace", "pathlib.PosixPath",
    "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
)  # fmt: skip


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of a torch file: zip or legacy, bare or inside a wrapper.

    returns: contiguous tensors on the CPU, each with memory of its own; types and names as stored
    Raises: CheckpointError: the file is damaged, would execute code, holds no tensors, or is of
        another kind.
    """
    with path.open("rb") as file:
        head = file.read(512)
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and not head.startswith(_LEGACY):
        raise CheckpointError(f"{path} is no torch file: {kind(head)}.")
    try:
        if zipped:
            _check_archive(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in _HARMLESS]):
            # Mapped, so that the optimiser's state beside the weights is never read.
            blob = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_refusal(error)}") from None
    except _DAMAGE as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"{path} is truncated or damaged, or of another kind than torch.save's: {reason}. Copy "
            "or download it again."
        ) from error
    state = _weights(blob, path)
    odd = [
        key
        for key, t in state.items()
        if t.is_meta or t.is_quantized or t.is_complex() or t.layout is not torch.strided
    ]
    if odd:
        raise CheckpointError(
            f"{path} holds tensors of a kind no weight has (complex, quantised, sparse, without "
            f"values): {odd[:4]}. Store plain tensors with torch.save."
        )
    # Views of one big or shared storage, or of the file itself, become tensors of their own.
    return apart(state)


def _refusal(error: pickle.UnpicklingError) -> str:
    """Why torch does not unpickle a file, and what to do about it."""
    reason = str(error).replace("\x1b[1m", "").replace("\x1b[0m", "").strip()
    if foreign := re.search(r"GLOBAL ([\w.]+)", reason):
        return (
            f"is refused: reading it would execute code of {foreign[1]}. Only tensors and plain "
            "values are read. Where you trust the file, convert it once: "
            "blob = torch.load(path, weights_only=False); torch.save({'model': "
            "blob['model']}, new_path), blob['model'] being a dict of tensors."
        )
    reason = reason.rpartition("WeightsUnpickler error:")[2].split("\n")[0].strip() or "?"
    return (
        "is damaged, or pickled in a way that is not read without executing code: "
        f"{reason}. Write it again with torch.save and its default pickle protocol."
    )


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that is cut off or has damaged records; torch looks at no checksum."""
    with zipfile.ZipFile(path) as archive:
        script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        stored = [entry for entry in archive.infolist() if entry.file_size]
        wrong = [entry.filename for entry in stored if not _intact(archive, entry)]
    if script:
        raise CheckpointError(
            f"{path} is a TorchScript archive: code and weights together. Only the weights are "
            "read; store them with torch.save(module.state_dict(), path)."
        )
    # torch can be told to write no checksums: then not one of them is right.
    if wrong and len(wrong) < len(stored):
        raise CheckpointError(
            f"{path} is damaged: {len(wrong)} of {len(stored)} records have another checksum than "
            f"when they were written, the first is {wrong[0]}. Copy or download it again."
        )


def _intact(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as record:
            while record.read(1 << 22):
                pass
        return True
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False


def _weights(blob: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors inside what a file holds."""
    if isinstance(blob, Mapping):
        inner = (blob[wrapper] for wrapper in _WRAPPERS if isinstance(blob.get(wrapper), Mapping))
        blob = next(inner, blob)
    held = type(blob).__name__
    if isinstance(blob, Mapping):
        state = {key: value for key, value in blob.items() if isinstance(value, Tensor)}
        if state and all(isinstance(key, str) for key in state):
            return state
        held = str({str(key): type(value).__name__ for key, value in list(blob.items())[:6]})
    raise CheckpointError(
        f"{path} holds no state dict (a mapping of names to tensors, bare or under "
        f"{' or '.join(map(repr, _WRAPPERS))}) but {held}. Turn NumPy arrays into tensors first."
    )


def kind(head: bytes) -> str:
    """What a file is by its first bytes, and what to do about it."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"{", b"[")):
        return "it is a web page or JSON text, such as an error message. Download the file again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to the file, not the file. Run `git lfs pull`"
    if head.startswith(b"\x80") and head[1:2] <= b"\x05":
        return (
            "it is a plain Python pickle, as detectron2's model zoo has them (.pkl). Unpickling "
            "executes code, so it is not read; where you trust it, convert it once: "
            "blob = pickle.load(open(path, 'rb'), encoding='latin1'); torch.save({'model': "
            "{k: torch.as_tensor(v) for k, v in blob['model'].items()}}, new_path)"
        )
    return f"it begins with {head[:8]!r}. Only torch.save's and safetensors files are read"
