"""Multi-scale deformable attention on the CPU: numba kernels, compiled at their first use.

The kernels are serial and release the lock of the interpreter; a few threads of our own take chunks
of the work. That is for safety, not for speed: the OpenMP layer of numba aborts a forked child, and
its workqueue aborts when two threads call at once. Measured against the OpenMP layer, on a busy
machine of two cores: the same with one thread, the rule in Ray workers; with two, 0.7 against
0.4 ms for the small decoder, and no difference larger than the noise for the encoders. Explicit
vector instructions gave 0 to 10 % forward and 15 % backward: too little for their code.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Kernel = Callable[..., None]

# Below so many multiply-adds a thread's share is not worth waking the thread (about 30 µs).
WORK_PER_THREAD = 200_000

_REALS: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot be used here, in one line; None when they can."""
    try:
        with warnings.catch_warnings():
            # What numba thinks of the versions around it is not the caller's concern.
            warnings.simplefilter("ignore")
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
    images, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    out = value.new_empty((images, queries, heads * channels))
    tasks = images * queries
    if out.numel() == 0:
        return out
    arguments = (
        _array(value),
        np.array(shapes, dtype=np.int64).reshape(levels, 2),
        _array(locations),
        _array(weights),
        _array(out).reshape(images, queries, heads, channels),
    )
    cost = heads * levels * points * channels * 4
    _share_out(_compiled("forward", value.dtype), arguments, tasks, tasks * cost)
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
    images, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    grad_value = torch.zeros_like(value, memory_format=torch.contiguous_format)
    grad_locations = torch.zeros_like(locations, memory_format=torch.contiguous_format)
    grad_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
    if grad.numel() == 0 or weights.numel() == 0:
        return grad_value, grad_locations, grad_weights
    arguments = (
        _array(value),
        np.array(shapes, dtype=np.int64).reshape(levels, 2),
        _array(locations),
        _array(weights),
        _array(grad).reshape(images, queries, heads, channels),
        _array(grad_value),
        _array(grad_locations),
        _array(grad_weights),
    )
    # One task is one head of one image: it alone adds to its part of the value gradient, in the
    # order of the queries, so there are no races, no atomics and no dependence on the threads.
    cost = queries * levels * points * channels * 8
    tasks = images * heads
    _share_out(_compiled("backward", value.dtype), arguments, tasks, tasks * cost)
    return grad_value, grad_locations, grad_weights


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's own memory if it is contiguous and aligned, the one layout that is compiled."""
    tensor = tensor.detach().contiguous()
    if tensor.data_ptr() % tensor.element_size():
        tensor = tensor.clone()
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array


# ---------------------------------------------------------------------------------------------
# Threads


_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


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


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ms_deform_attn")
        return _pool


def _after_fork() -> None:
    """A forked child inherits the objects but not the threads, nor who holds the locks."""
    global _pool, _lock, _compile_lock
    _pool = None
    _lock = threading.Lock()
    _compile_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ---------------------------------------------------------------------------------------------
# Compilation


_compile_lock = threading.Lock()
_ready: dict[tuple[str, torch.dtype], Kernel] = {}


def _compiled(name: str, dtype: torch.dtype) -> Kernel:
    """The kernel of that name and precision, compiled or read from numba's cache the first time."""
    kernel = _ready.get((name, dtype))
    if kernel is None:
        with _compile_lock:
            kernel = _ready.get((name, dtype)) or _compile(name, dtype)
            _ready[name, dtype] = kernel
    return kernel


def _compile(name: str, dtype: torch.dtype) -> Kernel:
    import numba

    real = _REALS[dtype]
    function = (_forward_kernel if name == "forward" else _backward_kernel)(real)
    # numba files its cache under this name. One name for two precisions would let two processes
    # that start together write each other's machine code.
    function.__qualname__ = f"ms_deform_attn_{name}_{real.__name__}"

    scalar = numba.from_dtype(np.dtype(real))
    tensors = {
        rank: scalar[(slice(None),) * (rank - 1) + (slice(None, None, 1),)] for rank in (4, 5, 6)
    }
    inputs = (tensors[4], numba.int64[:, ::1], tensors[6], tensors[5], tensors[4])
    outputs = () if name == "forward" else (tensors[4], tensors[6], tensors[5])
    signature = numba.void(*inputs, *outputs, numba.int64, numba.int64)

    def build(cache: bool) -> Kernel:
        # Contraction and reordering make vector code. The flags that promise there is no NaN and
        # no infinity stay off: under them the test that keeps a sample inside the picture would
        # be undefined for a NaN, and the address computed from it anywhere.
        flags = {"contract", "reassoc", "nsz", "arcp"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kernel: Kernel = numba.njit(signature, cache=cache, nogil=True, fastmath=flags)(
                function
            )
        return kernel

    try:
        return build(cache=True)
    except (OSError, RuntimeError, EOFError) as error:
        # No writable folder beside the source, in NUMBA_CACHE_DIR or in the user's cache, or a
        # full disk, or a damaged file there: a few seconds in every process, and nothing else.
        logger.warning("deformable attention is compiled anew, numba has no cache: %s", error)
        return build(cache=False)


# ---------------------------------------------------------------------------------------------
# Kernels. Plain functions of numpy arrays; `real` is the precision. Every constant and every level
# size is cast to it: in numba float32 times int64 is float64, which is slower and, at the exact
# border of a cell, chooses another cell than the other backends.


def _forward_kernel(real: Any) -> Kernel:
    zero, half, one, nan = real(0), real(0.5), real(1), real(np.nan)
    largest = real(np.finfo(real).max)

    def kernel(
        value: Any, shapes: Any, locations: Any, weights: Any, out: Any, first: int, last: int
    ) -> None:
        heads, channels = value.shape[2], value.shape[3]
        queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
        for task in range(first, last):
            n = task // queries
            q = task - n * queries
            for m in range(heads):
                result = out[n, q, m]
                for c in range(channels):
                    result[c] = zero
                start = 0
                for level in range(levels):
                    height, width = shapes[level, 0], shapes[level, 1]
                    if height * width == 0:  # its clamped corners would lie in another level
                        continue
                    for p in range(points):
                        x = locations[n, q, m, level, p, 0] * real(width) - half
                        y = locations[n, q, m, level, p, 1] * real(height) - half
                        if x >= -one and y >= -one and x < real(width) and y < real(height):
                            # The floor. numba's math.floor is a call that spills every register,
                            # a third of the kernel's time; int() alone rounds towards zero.
                            x0 = int(x) if x >= zero else -1
                            y0 = int(y) if y >= zero else -1
                            right, low = x - real(x0), y - real(y0)
                            left, high = one - right, one - low
                            x1, y1 = x0 + 1, y0 + 1
                            # Four corners always, those outside clamped and given weight zero:
                            # one inner loop without a branch.
                            if x0 < 0:
                                x0, left = 0, zero
                            if x1 == width:
                                x1, right = x1 - 1, zero
                            if y0 < 0:
                                y0, high = 0, zero
                            if y1 == height:
                                y1, low = y1 - 1, zero
                            weight = weights[n, q, m, level, p]
                            high *= weight
                            low *= weight
                            w00, w01, w10, w11 = high * left, high * right, low * left, low * right
                            row0, row1 = start + y0 * width, start + y1 * width
                            v00, v01 = value[n, row0 + x0, m], value[n, row0 + x1, m]
                            v10, v11 = value[n, row1 + x0, m], value[n, row1 + x1, m]
                            for c in range(channels):
                                result[c] += (
                                    w00 * v00[c] + w01 * v01[c] + w10 * v10[c] + w11 * v11[c]
                                )
                        elif not (abs(x) <= largest and abs(y) <= largest):
                            # A broken location must be seen, as it is in plain PyTorch. (Not by
                            # isfinite: that is x - x, which reordering makes 0 for any x.)
                            for c in range(channels):
                                result[c] = nan
                    start += height * width

    return kernel


def _backward_kernel(real: Any) -> Kernel:
    zero, half, one, nan = real(0), real(0.5), real(1), real(np.nan)
    largest = real(np.finfo(real).max)

    def kernel(
        value: Any,
        shapes: Any,
        locations: Any,
        weights: Any,
        grad: Any,
        grad_value: Any,
        grad_locations: Any,
        grad_weights: Any,
        first: int,
        last: int,
    ) -> None:
        heads, channels = value.shape[2], value.shape[3]
        queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
        for task in range(first, last):
            n = task // heads
            m = task - n * heads
            for q in range(queries):
                g = grad[n, q, m]
                start = 0
                for level in range(levels):
                    height, width = shapes[level, 0], shapes[level, 1]
                    if height * width == 0:  # its clamped corners would lie in another level
                        continue
                    for p in range(points):
                        x = locations[n, q, m, level, p, 0] * real(width) - half
                        y = locations[n, q, m, level, p, 1] * real(height) - half
                        if x >= -one and y >= -one and x < real(width) and y < real(height):
                            # The floor. numba's math.floor is a call that spills every register,
                            # a third of the kernel's time; int() alone rounds towards zero.
                            x0 = int(x) if x >= zero else -1
                            y0 = int(y) if y >= zero else -1
                            right, low = x - real(x0), y - real(y0)
                            left, high = one - right, one - low
                            x1, y1 = x0 + 1, y0 + 1
                            # in_… is 1 where the side lies inside the picture, else 0: outside it
                            # there is neither a value nor a slope.
                            in_left = in_right = in_high = in_low = one
                            if x0 < 0:
                                x0, left, in_left = 0, zero, zero
                            if x1 == width:
                                x1, right, in_right = x1 - 1, zero, zero
                            if y0 < 0:
                                y0, high, in_high = 0, zero, zero
                            if y1 == height:
                                y1, low, in_low = y1 - 1, zero, zero
                            row0, row1 = start + y0 * width, start + y1 * width
                            v00, v01 = value[n, row0 + x0, m], value[n, row0 + x1, m]
                            v10, v11 = value[n, row1 + x0, m], value[n, row1 + x1, m]
                            s00 = s01 = s10 = s11 = zero
                            for c in range(channels):
                                s00 += g[c] * v00[c]
                                s01 += g[c] * v01[c]
                                s10 += g[c] * v10[c]
                                s11 += g[c] * v11[c]
                            above = left * s00 + right * s01
                            below = left * s10 + right * s11
                            weight = weights[n, q, m, level, p]
                            grad_weights[n, q, m, level, p] = high * above + low * below
                            slope_x = high * (in_right * s01 - in_left * s00)
                            slope_x += low * (in_right * s11 - in_left * s10)
                            slope_y = in_low * below - in_high * above
                            grad_locations[n, q, m, level, p, 0] = weight * real(width) * slope_x
                            grad_locations[n, q, m, level, p, 1] = weight * real(height) * slope_y
                            high *= weight
                            low *= weight
                            w00, w01, w10, w11 = high * left, high * right, low * left, low * right
                            g00, g01 = grad_value[n, row0 + x0, m], grad_value[n, row0 + x1, m]
                            g10, g11 = grad_value[n, row1 + x0, m], grad_value[n, row1 + x1, m]
                            # One loop a corner: clamped corners may be the same row.
                            for c in range(channels):
                                g00[c] += w00 * g[c]
                            for c in range(channels):
                                g01[c] += w01 * g[c]
                            for c in range(channels):
                                g10[c] += w10 * g[c]
                            for c in range(channels):
                                g11[c] += w11 * g[c]
                        elif not (abs(x) <= largest and abs(y) <= largest):
                            grad_weights[n, q, m, level, p] = nan
                            grad_locations[n, q, m, level, p, 0] = nan
                            grad_locations[n, q, m, level, p, 1] = nan
                    start += height * width

    return kernel
