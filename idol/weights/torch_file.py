"""Files of torch.save, read without ever executing what is in them."""

from __future__ import annotations

import contextlib
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

# Under one of these keys trainers keep the weights, beside optimiser, scheduler and counters.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
# How every file that torch.save wrote before zip archives (torch 1.6) begins.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What torch's unpickler and zipfile raise for bytes that are not theirs, or half of what they were.
_DAMAGE = (
    RuntimeError, EOFError, ValueError, OSError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class _Inert:
    """Stands for a value beside the weights; it takes any arguments and keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


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

    returns: tensors on the CPU, contiguous, each with memory of its own, with types and names as
             stored
    Errors: CheckpointError for a damaged file, one that would execute code, one that holds no
            tensors, and any other kind of file.
    """
    with path.open("rb") as file:
        head = file.read(512)
    zipped = head.startswith(b"PK\x03\x04")
    if zipped:
        _check_archive(path)
    elif not head.startswith(_LEGACY):
        raise CheckpointError(f"{path} is no torch file: {kind(head)}")
    state = _weights(_load(path, zipped), path)
    odd = [
        f"{key} ({'complex' if t.is_complex() else 'quantised' if t.is_quantized else t.layout})"
        for key, t in state.items()
        if t.is_quantized or t.is_complex() or t.layout is not torch.strided
    ]
    empty = [key for key, t in state.items() if t.is_meta]
    if odd or empty:
        reason = f"tensors of a kind no weight has: {odd[:4]}" if odd else f"no values: {empty[:4]}"
        raise CheckpointError(f"{path} holds {reason}. Store plain tensors with torch.save.")
    # Views of one big or shared storage, or of the file itself, become tensors of their own.
    return {
        key: tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in state.items()
    }


def _load(path: Path, zipped: bool) -> Any:
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in _HARMLESS]):
            # Mapped, so that the optimiser's state beside the weights is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        names = _foreign_globals(path, zipped, str(error))
        if names:
            raise CheckpointError(
                f"{path} is refused: reading it would execute code of {', '.join(names)}. Only "
                "tensors and plain values are read. Where you trust the file, convert it once: "
                "blob = torch.load(path, weights_only=False); torch.save({'model': "
                "blob['model']}, new_path), blob['model'] being a dict of tensors."
            ) from None
        reason = str(error).replace("\x1b[1m", "").replace("\x1b[0m", "").strip()
        reason = reason.rpartition("WeightsUnpickler error:")[2].split("\n")[0].strip() or "?"
        raise CheckpointError(
            f"{path} is damaged, or pickled in a way that is not read without executing code: "
            f"{reason}. Write it anew with torch.save and its default pickle protocol."
        ) from None
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error) or repr(error)).splitlines()[0]
    return CheckpointError(f"{path} is truncated or damaged: {reason}. Copy or download it again.")


def _foreign_globals(path: Path, zipped: bool, message: str) -> list[str]:
    """Names of classes and functions that the file asks for and that are not read."""
    if zipped:
        with contextlib.suppress(pickle.UnpicklingError, *_DAMAGE):
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            return sorted(set(found) - set(_HARMLESS))
    return sorted(set(re.findall(r"GLOBAL ([\w.]+)", message)))


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that is cut off, has damaged records, or is no torch.save's."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if not any(name.endswith("/data.pkl") for name in names):
                raise CheckpointError(
                    f"{path} is a zip archive, but no torch file: it holds {names[:4]}. Unpack it?"
                )
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(
                    f"{path} is a TorchScript archive: code and weights together. Only the "
                    "weights are read; store them with torch.save(module.state_dict(), path)."
                )
            stored = [entry for entry in entries if entry.file_size]
            wrong = [entry.filename for entry in stored if not _intact(archive, entry)]
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    # torch can be told to write no checksums: then not one of them is right.
    if wrong and len(wrong) < len(stored):
        raise CheckpointError(
            f"{path} is damaged: {len(wrong)} of {len(stored)} records have another checksum than "
            f"when they were written, the first is {wrong[0]}. Copy or download it again."
        )


def _intact(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether a record has the checksum it was stored with; torch itself does not look."""
    try:
        with archive.open(entry) as record:
            while record.read(1 << 22):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False
    return True


def _weights(blob: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors inside what a file holds."""
    if isinstance(blob, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(blob.get(wrapper), Mapping):
                blob = blob[wrapper]
                break
    if not isinstance(blob, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(blob).__name__}, no state dict (a mapping of names to tensors)"
        )
    state = {key: value for key, value in blob.items() if isinstance(value, Tensor)}
    if not state or not all(isinstance(key, str) for key in state):
        held = {str(key): type(value).__name__ for key, value in list(blob.items())[:6]}
        arrays = any(isinstance(value, _Inert) for value in blob.values())
        raise CheckpointError(
            f"{path} holds no state dict (a mapping of names to tensors, bare or under "
            f"{' or '.join(map(repr, _WRAPPERS))}) but {held}."
            + (" Turn its NumPy arrays into tensors first." if arrays else "")
        )
    return state


def kind(head: bytes) -> str:
    """What a file is, by its first bytes, and what to do about it."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, probably an error or login page. Download the file again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to the file, not the file. Run `git lfs pull`"
    if text.startswith((b"{", b"[")):
        return "it is JSON text. Is this an error message, or the wrong file of a folder?"
    if head.startswith(b"\x80") and head[1:2] <= b"\x05":
        return (
            "it is a plain Python pickle, as detectron2's model zoo has them (.pkl). Unpickling "
            "executes code, so it is not read; where you trust it, convert it once: "
            "blob = pickle.load(open(path, 'rb'), encoding='latin1'); torch.save({'model': "
            "{k: torch.as_tensor(v) for k, v in blob['model'].items()}}, new_path)"
        )
    if head.startswith(b"\x89HDF"):
        return "it is HDF5, as Keras stores weights. Only PyTorch and safetensors files are read"
    if head[257:262] == b"ustar":
        return "it is a tar archive. Unpack it, or write it anew with torch.save"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")):
        return "it is compressed. Unpack it first"
    return f"it begins with {head[:8]!r}. Only torch.save's and safetensors files are read"
