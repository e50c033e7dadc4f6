"""Which implementation of deformable attention computes, chosen loudly.

The environment variable IDOL_MSDA_BACKEND forces one: `cuda` (kernels compiled at first use by
NVRTC), `cpu` (numba kernels) or `torch` (plain PyTorch), and it is an error if that cannot be had.
Unset, the tensors decide, and a fallback is told once with its reason.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Literal

import torch

from ops import cpu, cuda, nvrtc

_log = logging.getLogger(__name__)

VARIABLE = "IDOL_MSDA_BACKEND"

Backend = Literal["cuda", "cpu", "torch"]


def choose(
    device: str,
    index: int | None,
    sizes: tuple[int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    reference: int,
) -> Backend:
    """The backend for tensors of these properties; a compiled graph keeps the answer.

    device, index: of the tensors, as torch.device has them
    sizes:         levels, points and channels of a head
    dtypes:        of value, of offsets or locations, and of references
    reference:     numbers of a reference, 2 or 4; 0 where locations come in
    Raises: ValueError: a forced backend cannot be had.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "cuda", "cpu", "torch"):
        raise ValueError(
            f"{VARIABLE} must be cuda, cpu or torch, got {asked!r}; unset it to let the tensors "
            f"decide."
        )
    if asked == "torch":
        return "torch"
    if asked and asked != device:
        raise ValueError(
            f"{VARIABLE}={asked} computes on {asked} tensors, but these are on {device}; move "
            f"them, or unset {VARIABLE}."
        )
    if device == "cuda":
        reason = nvrtc.missing()
        if reason is None and index is not None:
            anchor = dtypes[2] if reference else torch.float32
            wanted = cuda.Specialisation(*sizes, *dtypes[:2], anchor, reference)
            reason = cuda.unusable(wanted, index)
    elif device == "cpu":
        reason = cpu.missing()
    else:
        reason = f"there is no kernel for {device}"
    if reason is None:
        return "cuda" if device == "cuda" else "cpu"
    if asked:
        raise ValueError(
            f"{VARIABLE}={asked} is set, but {reason}. Unset {VARIABLE} to go on in plain PyTorch."
        )
    say_once(f"deformable attention runs in plain PyTorch, many times slower: {reason}")
    return "torch"


# What torch.compiler.assume_constant_result does, which imports the whole compiler first: a third
# of the time in which an actor starts.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def say_once(message: str) -> None:
    """Warn, but not in every layer of every frame."""
    _log.warning(message)
