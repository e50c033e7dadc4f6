"""Multi-scale deformable attention on the CPU: numba kernels, compiled at their first use.

The kernels (`ops.cpu_kernels`) are serial and release the lock of the interpreter; a few threads of
our own take chunks of the work. That is for safety, not for speed: the OpenMP layer of numba aborts
a forked child, and its workqueue aborts when two threads call at once. Against the OpenMP layer it
takes the same time with one thread, the rule in Ray workers; with two, 0.7 against 0.4 ms for the
small decoder, and no more for the encoders.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

_log = logging.getLogger(__name__)

Kernel = Callable[..., None]

# Below so many multiply-adds a thread's share is not worth waking the thread (about 30 µs).
WORK_PER_THREAD = 200_000

_REALS: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot be used here, in one line; None when they can."""
    try:
        # What numba thinks of the versions around it is not the caller's concern.
        with warnings.catch_warnings(action="ignore"):
            import numba
    except ImportError as error:  # absent, or at odds with the installed numpy
        return f"numba cannot be imported ({error})"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set"
    return None


def forward(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The attention without gradient; arguments and result as in `ops.reference`.

    All three tensors are float32, or all are float64; other strides than contiguous are copied.
    """
    images, pixels, heads, channels = value.shape
    queries, samples = weights.shape[1], weights.shape[3] * weights.shape[4]
    size = (images, queries, heads * channels)
    if images * queries * heads * channels == 0 or pixels * samples == 0:
        return value.new_zeros(size)
    # Not zeroed: every place is written, and its memory is touched first by the threads.
    out = value.new_empty(size)
    tasks = images * queries
    arguments = (*_inputs(value, shapes, locations, weights), _array(out, tasks, -1))
    cost = heads * samples * channels * 4
    _share_out(_compiled("forward", value.dtype, channels), arguments, tasks, tasks * cost)
    return out


def backward(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; the same bits whatever the number of threads.

    grad:    (N, Q, M·C) gradient of the result; the rest as in `forward`
    returns: tensors shaped as value, locations and weights
    """
    images, pixels, heads, channels = value.shape
    queries, samples = weights.shape[1], weights.shape[3] * weights.shape[4]
    grad_value = torch.zeros_like(value, memory_format=torch.contiguous_format)
    if grad.numel() == 0 or pixels * samples == 0:
        return grad_value, torch.zeros_like(locations), torch.zeros_like(weights)
    # As in the forward: these are written throughout, while the value's is summed up.
    grad_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    arguments = (
        *_inputs(value, shapes, locations, weights),
        _array(grad, images * queries, -1),
        _array(grad_value, images, pixels, -1),
        _array(grad_locations, images * queries, heads, -1),
        _array(grad_weights, images * queries, heads, -1),
    )
    # One task is one head of one image, see backward_kernel.
    cost = queries * samples * channels * 8
    tasks = images * heads
    _share_out(_compiled("backward", value.dtype, channels), arguments, tasks, tasks * cost)
    return grad_value, grad_locations, grad_weights


def _inputs(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Any, ...]:
    """What both kernels take, in their order and with their dimensions."""
    images, pixels, heads, channels = value.shape
    rows = images * weights.shape[1]
    return (
        (None,) * channels,
        _array(value, images, pixels, -1),
        np.array(shapes, dtype=np.int64).reshape(-1, 2),
        _array(locations, rows, heads, -1),
        _array(weights, rows, heads, -1),
    )


def _array(tensor: Tensor, *layout: int) -> np.ndarray[Any, Any]:
    """The tensor's own memory if it is contiguous and aligned, the one layout that is compiled."""
    tensor = tensor.detach().contiguous()
    if tensor.data_ptr() % tensor.element_size():
        tensor = tensor.clone()
    array: np.ndarray[Any, Any] = tensor.numpy().reshape(layout)
    return array


def _share_out(kernel: Kernel, arguments: tuple[Any, ...], tasks: int, work: int) -> None:
    """Call kernel(*arguments, first, last) over 0..tasks, on as many threads as torch would use."""
    threads = min(torch.get_num_threads(), tasks, max(work // WORK_PER_THREAD, 1))
    if threads == 1:
        kernel(*arguments, 0, tasks)
        return
    # Four chunks a thread: a thread that lost its core to somebody else holds up less.
    chunk = max(tasks // (4 * threads), 1)
    firsts = itertools.count(0, chunk)

    def run() -> None:
        for first in firsts:
            if first >= tasks:
                return
            kernel(*arguments, first, min(first + chunk, tasks))

    pool = _threads()
    helpers = [pool.submit(run) for _ in range(threads - 1)]
    run()
    for helper in helpers:
        helper.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ms_deform_attn")


_compile_lock = threading.Lock()
_ready: dict[tuple[str, torch.dtype, int], Kernel] = {}


def _after_fork() -> None:
    """A forked child inherits the objects but not the threads, nor who holds the lock."""
    global _compile_lock
    _threads.cache_clear()
    _compile_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _compiled(name: str, dtype: torch.dtype, width: int) -> Kernel:
    """That kernel for heads of so many channels, compiled or read from numba's cache once."""
    key = (name, dtype, width)
    if key not in _ready:
        with _compile_lock:
            if key not in _ready:
                _ready[key] = _compile(name, dtype, width)
    return _ready[key]


def _compile(name: str, dtype: torch.dtype, width: int) -> Kernel:
    with warnings.catch_warnings(action="ignore"):
        import numba

        from ops import cpu_kernels

        source = cpu_kernels.forward_kernel if name == "forward" else cpu_kernels.backward_kernel
        real = _REALS[dtype]
        # numba files its cache under this name. One name for two precisions would let two
        # processes that start together write each other's machine code.
        function = types.FunctionType(source.__code__, source.__globals__, source.__name__)
        function.__qualname__ = f"ms_deform_attn_{name}_{real.__name__}_{width}"
        function.__module__ = source.__module__
        scalar, number = numba.from_dtype(np.dtype(real)), numba.int64
        rank2, rank3 = scalar[:, ::1], scalar[:, :, ::1]
        outputs = (rank2,) if name == "forward" else (rank2, rank3, rank3, rank3)
        nones = numba.types.UniTuple(numba.types.none, width)
        signature = numba.void(nones, rank3, number[:, ::1], rank3, rank3, *outputs, number, number)

        def build(cache: bool) -> Kernel:
            jit = numba.njit(signature, cache=cache, nogil=True, fastmath=cpu_kernels.FLAGS)
            kernel: Kernel = jit(function)
            return kernel

        try:
            return build(cache=True)
        except (OSError, RuntimeError, EOFError) as error:
            # No writable folder beside the source, in NUMBA_CACHE_DIR or in the user's cache, a
            # full disk or a damaged file there: a few seconds in every process, and nothing else.
            _log.warning("deformable attention is compiled again, numba has no cache: %s", error)
            return build(cache=False)
