"""Other implementations of deformable attention, to be timed beside ours where they can be had.

Each is a function (value, shapes, locations, weights) -> out with the arguments of
ops.ms_deform_attn, or the reason why it is not here.

    Hugging Face   the plain PyTorch version of transformers
    deformops      its Triton or CUDA kernels (Python 3.12 and newer)
    original       the CUDA kernel of Deformable DETR (float32), from a copy of its sources:
                   --original FOLDER, the folder with ms_deform_im2col_cuda.cuh; needs nvcc, or a
                   library that `python -m benchmarks.rivals FOLDER OUT.so` made on another machine
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, int]]
Attention = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]

# The kernels themselves need nothing of torch: with these empty headers they compile without it.
_EMPTY = ("ATen/ATen.h", "ATen/cuda/CUDAContext.h", "THC/THCAtomics.cuh")
_BRIDGE = """
#include <cstdint>
#include "ms_deform_im2col_cuda.cuh"
extern "C" void attend(
    void* stream, const float* value, const int64_t* shapes, const int64_t* starts,
    const float* locations, const float* weights, int images, int pixels, int heads, int channels,
    int levels, int queries, int points, float* out) {
  ms_deformable_im2col_cuda<float>(
      (cudaStream_t)stream, value, shapes, starts, locations, weights, images, pixels, heads,
      channels, levels, queries, points, out);
}
extern "C" void attend_backward(
    void* stream, const float* grad, const float* value, const int64_t* shapes,
    const int64_t* starts, const float* locations, const float* weights, int images, int pixels,
    int heads, int channels, int levels, int queries, int points, float* by_value,
    float* by_locations, float* by_weights) {
  ms_deformable_col2im_cuda<float>(
      (cudaStream_t)stream, grad, value, shapes, starts, locations, weights, images, pixels, heads,
      channels, levels, queries, points, by_value, by_locations, by_weights);
}
"""


def build_original(folder: Path, library: Path, architecture: str = "sm_90") -> None:
    """Compile the original kernels of that folder into a library, with nvcc.

    Errors: RuntimeError with nvcc's own words, or where it or the source is missing.
    """
    if shutil.which("nvcc") is None:
        raise RuntimeError("nvcc is not here")
    if not (folder / "ms_deform_im2col_cuda.cuh").is_file():
        raise RuntimeError(f"{folder} has no ms_deform_im2col_cuda.cuh")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for header in _EMPTY:
            (place / header).parent.mkdir(parents=True, exist_ok=True)
            (place / header).touch()
        (place / "bridge.cu").write_text(_BRIDGE)
        command = ["nvcc", "-O3", "-shared", "-Xcompiler", "-fPIC", f"-arch={architecture}"]
        command += ["-I", str(place), "-I", str(folder), "-o", str(library)]
        done = subprocess.run(
            [*command, str(place / "bridge.cu")], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"nvcc: {done.stderr.strip().splitlines()[-1]}")


class _Original(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Any, shapes: Shapes, *tensors: Tensor) -> Tensor:
        value, _, weights = tensors
        images, pixels, heads, channels = value.shape
        levels, points = weights.shape[3:]
        queries = weights.shape[1]
        out = value.new_zeros(images, queries, heads * channels)
        tables = _tables(tuple(shapes), value.device)
        ctx.save_for_backward(*tensors)
        ctx.library, ctx.tables = library, tables
        ctx.sizes = (images, pixels, heads, channels, levels, queries, points)
        library.attend(
            _stream(), *_pointers(value, *tables, *tensors[1:]), *ctx.sizes, *_pointers(out)
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gradients = [torch.zeros_like(t) for t in ctx.saved_tensors]
        value, *others = ctx.saved_tensors
        ctx.library.attend_backward(
            _stream(), *_pointers(grad.contiguous(), value, *ctx.tables, *others), *ctx.sizes,
            *_pointers(*gradients),
        )  # fmt: skip
        return None, None, *gradients


_known_tables: dict[Any, tuple[Tensor, Tensor]] = {}


def _tables(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The levels' sizes and first pixels on the device, made once."""
    key = (shapes, device)
    if key not in _known_tables:
        sizes = torch.tensor(shapes)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.prod(1).cumsum(0)[:-1]])
        _known_tables[key] = sizes.to(device), starts.to(device)
    return _known_tables[key]


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def original(source: Path) -> Attention | str:
    """The kernel of Deformable DETR, from its folder or from a library made of it."""
    try:
        if source.is_dir():
            library = Path(tempfile.mkdtemp()) / "original.so"
            major, minor = torch.cuda.get_device_capability()
            build_original(source, library, f"sm_{major}{minor}")
            source = library
        loaded = ctypes.CDLL(str(source))
    except (OSError, RuntimeError) as error:
        return str(error)

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        if value.dtype != torch.float32:
            raise TypeError("the original kernel knows float32 (and float64) only")
        out: Tensor = _Original.apply(loaded, tuple(shapes), value, locations, weights)
        return out

    return attend


def deformops() -> Attention | str:
    """deformops with the backend that it chooses itself."""
    try:
        import deformops.registry  # noqa: F401
    except Exception as error:  # whatever an import of somebody else's package may raise
        return f"deformops cannot be imported ({error})"

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _tables(tuple(shapes), value.device)
        # It wants one precision.
        out: Tensor = torch.ops.deformops.msda(
            value, sizes, starts, locations.to(value.dtype), weights.to(value.dtype)
        )
        return out

    return attend


def hugging_face() -> Attention | str:
    """The plain PyTorch version of transformers."""
    try:
        from transformers.models.deformable_detr.modeling_deformable_detr import (
            MultiScaleDeformableAttention,
        )
    except ImportError as error:
        return f"transformers cannot be imported ({error})"
    module = MultiScaleDeformableAttention()

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _tables(tuple(shapes), value.device)
        out: Tensor = module(
            value, sizes, list(shapes), starts, locations.to(value.dtype),
            weights.to(value.dtype), 64,
        )  # fmt: skip
        return out

    return attend


if __name__ == "__main__":
    build_original(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
