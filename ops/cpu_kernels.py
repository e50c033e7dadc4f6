"""The compiled half of `ops.cpu`: numba functions, and the two inner loops as LLVM vector code.

A kernel works in passes over some 128 samples, with what passes between them in small arrays that
stay in the first cache:

1. *Corners*: pixel coordinates, the four corners' rows and weights. Free of branches, so that LLVM
   computes many samples at once.
2. *Gather* (forward) or *scatter* (backward): for every sample four rows of one head's channels,
   as vectors as wide as the head. Written as LLVM code because numba cannot say that two arrays
   do not overlap: it would check that before every inner loop, and keep the sum in memory.
3. Backward only: *slopes*, the gradients of locations and weights from the four dot products.

Import this only where numba is known to be there: `ops.cpu` does, at the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Contraction and reordering make vector code. The flags that promise there is no NaN and no
# infinity stay off: under them the test that keeps a sample inside the picture would be undefined
# for a NaN, and the address computed from it anywhere.
FLAGS = {"contract", "reassoc", "nsz", "arcp"}
_VECTOR_FLAGS = ("contract", "reassoc", "nsz")

# Of wider heads a part of the channels at a time: an accumulator and four rows in registers.
_WIDEST_BYTES = 256

# Queries that the backward takes together, so that the first and third pass have long loops.
_TOGETHER = 8

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)  # called with a number, a constant

# Inlined: linked, a fresh compile calls other code than the cache holds, with other last bits.
_jit: Callable[[Any], Any] = numba.njit(nogil=True, fastmath=FLAGS, forceinline=True)
_inline: Callable[[Any], Any] = intrinsic


# ---------------------------------------------------------------------------------------------
# LLVM code. Addresses are integers; the width of a head is the length of a tuple of None, which
# is how a number reaches the compiler through the type of an argument.


class _Rows:
    """What gather and scatter share: the loop over samples, and the corners' rows in it."""

    def __init__(self, builder: Any, real: Any, channels: range, rows: Any, weights: Any):
        number = ir.FloatType() if real == types.float32 else ir.DoubleType()
        self.b = builder
        self.size = real.bitwidth // 8
        self.count = len(channels)
        self.skipped_bytes = _INT64(channels.start * self.size)
        self.vector, self.four = ir.VectorType(number, self.count), ir.VectorType(number, 4)
        self.rows = builder.inttoptr(rows, _INT32.as_pointer())
        self.weights = builder.inttoptr(weights, number.as_pointer())

    def load(self, address: Any, kind: Any) -> Any:
        """The vector at that address, which need not be aligned to more than one number."""
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=self.size)

    def store(self, vector: Any, address: Any) -> None:
        self.b.store(vector, self.b.inttoptr(address, vector.type.as_pointer()), align=self.size)

    def shuffle(self, a: Any, b: Any, order: list[int]) -> Any:
        return self.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT32, len(order)), order))

    def add(self, a: Any, b: Any) -> Any:
        return self.b.fadd(a, b, flags=_VECTOR_FLAGS)

    def multiply(self, a: Any, b: Any) -> Any:
        return self.b.fmul(a, b, flags=_VECTOR_FLAGS)

    @contextmanager
    def samples(self, count: Any, stride: Any) -> Iterator[tuple[Any, list[tuple[Any, Any]]]]:
        """A loop over the samples that have corners: whose first row is not −1.

        gives: the sample, and of each corner the byte offset of its channels and its weight in
               every channel
        """
        with cgutils.for_range(self.b, count) as loop:
            first = self.b.shl(loop.index, _INT64(2))
            indices = [self.b.add(first, _INT64(k)) for k in range(4)]
            rows = [self.b.gep(self.rows, [index]) for index in indices]
            inside = self.b.icmp_signed(">=", self.b.load(rows[0]), _INT32(0))
            with self.b.if_then(inside):
                corners = []
                for index, row in zip(indices, rows, strict=True):
                    start = self.b.mul(self.b.sext(self.b.load(row), _INT64), stride)
                    weight = self.b.load(self.b.gep(self.weights, [index]))
                    undefined = ir.Constant(self.vector, ir.Undefined)
                    one = self.b.insert_element(undefined, weight, _INT32(0))
                    weights = self.shuffle(one, undefined, [0] * self.count)
                    corners.append((self.b.add(start, self.skipped_bytes), weights))
                yield loop.index, corners

    def sums(self, parts: list[Any]) -> Any:
        """The four vectors' sums, as one vector of four."""
        count = self.count
        while count > 4 and count % 2 == 0:
            half = count // 2
            low, high = list(range(half)), list(range(half, count))
            parts = [self.add(self.shuffle(x, x, low), self.shuffle(x, x, high)) for x in parts]
            count = half
        if count == 4:
            a, b, c, d = parts
            even, odd = [0, 4, 2, 6], [1, 5, 3, 7]
            ab = self.add(self.shuffle(a, b, even), self.shuffle(a, b, odd))
            cd = self.add(self.shuffle(c, d, even), self.shuffle(c, d, odd))
            return self.add(self.shuffle(ab, cd, [0, 1, 4, 5]), self.shuffle(ab, cd, [2, 3, 6, 7]))
        four = ir.Constant(self.four, ir.Undefined)
        for k, part in enumerate(parts):
            total = self.b.extract_element(part, _INT32(0))
            for c in range(1, count):
                total = self.add(total, self.b.extract_element(part, _INT32(c)))
            four = self.b.insert_element(four, total, _INT32(k))
        return four


def _parts(width: int, size: int) -> list[range]:
    """The channels of a head, in parts that fit the registers."""
    step = _WIDEST_BYTES // size
    return [range(first, min(first + step, width)) for first in range(0, width, step)]


@_inline
def _gather(typing: Any, like: Any, width: Any, numbers: Any, n: Any) -> Any:
    """Set the head at `out` to the sum over n samples and four corners of weight · row.

    like: an array, for its precision; width: a tuple as long as a head has channels; numbers: the
    addresses of out, of row 0 of value, bytes from row to row, addresses of 4·n int32 and weights
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, numbers, count = arguments
        out, value, stride, rows, weights = cgutils.unpack_tuple(builder, numbers)
        for channels in _parts(len(width), like.dtype.bitwidth // 8):
            r = _Rows(builder, like.dtype, channels, rows, weights)
            # On the stack for the builder only: LLVM makes it a register.
            total = cgutils.alloca_once_value(builder, ir.Constant(r.vector, [0.0] * r.count))
            with r.samples(count, stride) as (_, corners):
                sum_ = builder.load(total)
                for offset, weight in corners:
                    row = r.load(builder.add(value, offset), r.vector)
                    sum_ = r.add(sum_, r.multiply(row, weight))
                builder.store(sum_, total)
            r.store(builder.load(total), builder.add(out, r.skipped_bytes))
        return context.get_dummy_value()

    return types.void(like, width, types.UniTuple(types.uintp, 5), types.intp), generate


@_inline
def _scatter(typing: Any, like: Any, width: Any, numbers: Any, n: Any) -> Any:
    """Add weight · grad to every corner's row of grad_value; dots (n, 4) are grad · row of value.

    Arguments as in _gather, but numbers: of grad, value, grad_value, whose rows lie as those of
    value, stride, rows, weights, dots.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, numbers, count = arguments
        grad, value, grad_value, stride, rows, w, dots = cgutils.unpack_tuple(builder, numbers)
        for channels in _parts(len(width), like.dtype.bitwidth // 8):
            r = _Rows(builder, like.dtype, channels, rows, w)
            g = r.load(builder.add(grad, r.skipped_bytes), r.vector)
            with r.samples(count, stride) as (sample, corners):
                values = [r.load(builder.add(value, at), r.vector) for at, _ in corners]
                # One corner after the other: two that are clamped may be the same row.
                for offset, weight in corners:
                    address = builder.add(grad_value, offset)
                    r.store(r.add(r.load(address, r.vector), r.multiply(g, weight)), address)
                place = builder.add(dots, builder.mul(sample, _INT64(4 * r.size)))
                sums = r.sums([r.multiply(g, x) for x in values])
                if channels.start:
                    sums = r.add(sums, r.load(place, r.four))
                r.store(sums, place)
        return context.get_dummy_value()

    return types.void(like, width, types.UniTuple(types.uintp, 7), types.intp), generate


# ---------------------------------------------------------------------------------------------
# The passes over many samples. Every constant and every level size is cast to `real`: in numba
# float32 times int64 is float64, which is slower and, at the exact border of a cell, chooses
# another cell than the other backends.


@_jit
def _levels(shapes: Any, points: int, repeats: int, like: Any) -> Any:
    """(h, w, first row of the level) for each of repeats · L · P samples, as integers and reals."""
    real = like.dtype.type
    count = repeats * shapes.shape[0] * points
    sizes = np.empty((3, count), np.int32)
    sides = np.empty((2, count), like.dtype)
    s = 0
    for _ in range(repeats):
        first = 0
        for level in range(shapes.shape[0]):
            height, width = shapes[level, 0], shapes[level, 1]
            for _ in range(points):
                sizes[0, s], sizes[1, s], sizes[2, s] = height, width, first
                sides[0, s], sides[1, s] = real(height), real(width)
                s += 1
            first += height * width
    return sizes, sides


@_jit
def _aligned(rows: int, columns: int, like: Any) -> Any:
    """An uninitialised array that begins a line of the cache, which numpy's do by chance only."""
    more = 64 // like.itemsize
    flat = np.empty(rows * columns + more, like.dtype)
    skipped = (-flat.ctypes.data % 64) // like.itemsize
    return flat[skipped : skipped + rows * columns].reshape(rows, columns)


@_jit
def _corners(
    locations: Any, attention: Any, sizes: Any, sides: Any, rows: Any, w: Any, seen: Any
) -> None:
    """Four rows and weights for each sample; of samples outside the first row is −1.

    locations (2·s,), attention (s,); sizes, sides as of _levels; rows, w (4·s,) are written, and
    seen (6·s,): the fractions x and y, and which of left, right, high, low are inside. If it is
    None, and only then, numba removes the branch, which no vector code survives.
    """
    real = locations.dtype.type
    zero, half, one, two, nan = real(0), real(0.5), real(1), real(2), real(np.nan)
    largest = real(np.finfo(locations.dtype).max)
    none, unit = np.int32(0), np.int32(1)
    tall, wide = sides[0], sides[1]
    for s in range(attention.shape[0]):
        x = locations[2 * s] * wide[s] - half
        y = locations[2 * s + 1] * tall[s] - half
        # Just outside is as good as far outside, and fits an integer. A NaN fails the first test.
        nx = x if x > -two else -two
        nx = nx if nx < wide[s] + one else wide[s] + one
        ny = y if y > -two else -two
        ny = ny if ny < tall[s] + one else tall[s] + one
        # The floor: math.floor is a call, which no vector code survives, and int32() truncates.
        x0, y0 = np.int32(nx), np.int32(ny)
        x0 -= np.int32(real(x0) > nx)
        y0 -= np.int32(real(y0) > ny)
        x1, y1 = x0 + unit, y0 + unit
        right, low = nx - real(x0), ny - real(y0)
        height, width, start = sizes[0, s], sizes[1, s], sizes[2, s]
        in_left = one if (x0 >= none) & (x0 < width) else zero
        in_right = one if (x1 >= none) & (x1 < width) else zero
        in_high = one if (y0 >= none) & (y0 < height) else zero
        in_low = one if (y1 >= none) & (y1 < height) else zero
        # Not by isfinite: that is x - x, which reordering makes 0 for any x.
        finite = (abs(x) <= largest) & (abs(y) <= largest)
        inside = (in_left + in_right) * (in_high + in_low) > zero
        if seen is not None:
            seen[6 * s] = right if finite else nan
            seen[6 * s + 1] = low if finite else nan
            seen[6 * s + 2], seen[6 * s + 3] = in_left, in_right
            seen[6 * s + 4], seen[6 * s + 5] = in_high, in_low
            inside = inside & finite
        else:
            # A broken location must be seen, as it is in plain PyTorch: NaN times any row.
            inside = inside | (not finite) & (height * width > none)
        weight = attention[s] if finite else nan
        left, high = in_left * (one - right), in_high * (one - low) * weight
        right, low = in_right * right, in_low * low * weight
        # Of four corners those outside are clamped, which makes them another corner of this
        # sample, and have weight zero: one inner loop without a branch.
        last_x, last_y = width - unit, height - unit
        x0, x1 = min(max(x0, none), last_x), min(max(x1, none), last_x)
        y0, y1 = min(max(y0, none), last_y), min(max(y1, none), last_y)
        above, below = start + y0 * width, start + y1 * width
        rows[4 * s] = above + x0 if inside else -unit
        rows[4 * s + 1], rows[4 * s + 2], rows[4 * s + 3] = above + x1, below + x0, below + x1
        w[4 * s], w[4 * s + 1] = high * left, high * right
        w[4 * s + 2], w[4 * s + 3] = low * left, low * right


@_jit
def _slopes(dots: Any, attention: Any, sides: Any, seen: Any, by_location: Any, by_w: Any) -> None:
    """Gradients of locations (2·s,) and weights (s,) from dots (4·s,); the rest as of _corners."""
    one = dots.dtype.type(1)
    tall, wide = sides[0], sides[1]
    for s in range(attention.shape[0]):
        right, low = seen[6 * s], seen[6 * s + 1]
        left, high = one - right, one - low
        # A corner outside has neither a value nor a slope.
        s00 = dots[4 * s] * seen[6 * s + 2] * seen[6 * s + 4]
        s01 = dots[4 * s + 1] * seen[6 * s + 3] * seen[6 * s + 4]
        s10 = dots[4 * s + 2] * seen[6 * s + 2] * seen[6 * s + 5]
        s11 = dots[4 * s + 3] * seen[6 * s + 3] * seen[6 * s + 5]
        above, below = left * s00 + right * s01, left * s10 + right * s11
        by_w[s] = high * above + low * below
        across = high * (s01 - s00) + low * (s11 - s10)
        by_location[2 * s] = attention[s] * wide[s] * across
        by_location[2 * s + 1] = attention[s] * tall[s] * (below - above)


# ---------------------------------------------------------------------------------------------
# The two kernels; `ops.cpu` compiles them for a precision and a width of heads. Globals only, no
# closure: numba pickles a closure into the key of its cache, and a compiled function in it has
# another key in every process.


def forward_kernel(
    width: Any, value: Any, shapes: Any, places: Any, weights: Any, out: Any, first: int, last: int
) -> None:
    """Queries first..last, counted through all images: out (N·Q, M·C) is set.

    width: tuple of C times None; value (N, S, M·C), shapes (L, 2), places (N·Q, M, L·P·2), weights
    (N·Q, M, L·P)
    """
    images, pixels, _ = value.shape
    _, heads, samples = weights.shape
    queries = weights.shape[0] // images
    size = value.itemsize
    wide = len(width) * size
    stride = heads * wide
    sizes, sides = _levels(shapes, samples // shapes.shape[0], heads, value)
    rows = np.empty(4 * heads * samples, np.int32)
    mixed = np.empty(4 * heads * samples, value.dtype)
    for task in range(first, last):
        xy, strengths = places[task].reshape(-1), weights[task].reshape(-1)
        _corners(xy, strengths, sizes, sides, rows, mixed, None)
        image = value.ctypes.data + (task // queries) * pixels * stride
        for m in range(heads):
            target, source = out.ctypes.data + task * stride + m * wide, image + m * wide
            rows_at = rows.ctypes.data + 16 * m * samples
            mixed_at = mixed.ctypes.data + 4 * size * m * samples
            _gather(value, width, (target, source, stride, rows_at, mixed_at), samples)


def backward_kernel(
    width: Any,
    value: Any,
    shapes: Any,
    places: Any,
    weights: Any,
    grad: Any,
    grad_value: Any,
    grad_places: Any,
    grad_weights: Any,
    first: int,
    last: int,
) -> None:
    """Heads first..last, counted through all images; grad (N·Q, M·C), the rest as forward_kernel.

    A task alone adds to its head's part of grad_value (zeros at first), in the order of queries.
    """
    images, pixels, _ = value.shape
    total, heads, samples = weights.shape
    queries, size, channels = total // images, value.itemsize, len(width)
    wide = channels * size
    sizes, sides = _levels(shapes, samples // shapes.shape[0], _TOGETHER, value)
    xy = np.empty((_TOGETHER, 2 * samples), value.dtype)
    strengths = np.empty((_TOGETHER, samples), value.dtype)
    by_xy, by_strengths = np.empty_like(xy), np.empty_like(strengths)
    rows, mixed = np.empty(2 * xy.size, np.int32), np.empty(2 * xy.size, value.dtype)
    seen, dots = np.empty(3 * xy.size, value.dtype), np.empty(2 * xy.size, value.dtype)
    # With many queries the head is copied together. Where it lies, one row every M·C numbers, all
    # of its rows fall into a few sets of the cache and drive each other out.
    together = queries * samples >= pixels
    copied = pixels if together else 0
    values, grads = _aligned(copied, channels, value), _aligned(copied, channels, value)
    for task in range(first, last):
        n, m = task // heads, task % heads
        columns = slice(m * channels, (m + 1) * channels)
        at = (n * pixels * heads + m) * wide
        source, target, stride = value.ctypes.data + at, grad_value.ctypes.data + at, heads * wide
        if together:
            values[:] = value[n, :, columns]
            grads[:] = 0
            source, target, stride = values.ctypes.data, grads.ctypes.data, wide
        for begin in range(n * queries, (n + 1) * queries, _TOGETHER):
            number = min(_TOGETHER, (n + 1) * queries - begin)
            end = begin + number
            xy[:number], strengths[:number] = places[begin:end, m], weights[begin:end, m]
            used = strengths[:number].reshape(-1)
            dots[:] = 0
            _corners(xy.reshape(-1), used, sizes, sides, rows, mixed, seen)
            for q in range(number):
                grad_at = grad.ctypes.data + ((begin + q) * heads + m) * wide
                rows_at = rows.ctypes.data + 16 * q * samples
                mixed_at = mixed.ctypes.data + 4 * size * q * samples
                dots_at = dots.ctypes.data + 4 * size * q * samples
                numbers = (grad_at, source, target, stride, rows_at, mixed_at, dots_at)
                _scatter(value, width, numbers, samples)
            _slopes(dots, used, sides, seen, by_xy.reshape(-1), by_strengths.reshape(-1))
            grad_places[begin:end, m] = by_xy[:number]
            grad_weights[begin:end, m] = by_strengths[:number]
        if together:
            grad_value[n, :, columns] = grads
