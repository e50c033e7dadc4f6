"""The compiled half of `ops.cpu`: numba functions, and the two inner loops as LLVM vector code.

A kernel works in passes over some 128 samples, with what passes between them in small arrays that
stay in the first cache:

1. *Corners*: pixel coordinates, the four corners' rows and weights. Free of branches, so that LLVM
   computes many samples at once.
2. *Gather* (forward) or *scatter* (backward): for every sample four rows of one head's channels,
   as vectors as wide as the head. LLVM cuts them to the machine's own width. Written as LLVM code
   because numba cannot say that two arrays do not overlap: it would check that before every inner
   loop, and keep the sum in memory instead of in registers.
3. Backward only: *slopes*, the gradients of locations and weights from the four dot products.

Import this only where numba is known to be there: `ops.cpu` does, at the first call.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
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

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


def _jit(function: Any) -> Any:
    return numba.njit(nogil=True, fastmath=FLAGS)(function)


def _inline(generator: Any) -> Any:
    return intrinsic(generator)


# ---------------------------------------------------------------------------------------------
# LLVM code. Addresses are integers; the width of a head is the length of a tuple of None, which
# is how a number reaches the compiler through the type of an argument.


class _Rows:
    """What gather and scatter share: the loop over samples, and the corners' rows in it."""

    def __init__(self, builder: Any, real: Any, channels: range, offsets: Any, weights: Any):
        self.b = builder
        self.bits = ir.FloatType() if real == types.float32 else ir.DoubleType()
        self.size = real.bitwidth // 8
        self.count = len(channels)
        self.skipped_bytes = _constant(channels.start * self.size)
        self.vector = ir.VectorType(self.bits, self.count)
        self.offsets = builder.inttoptr(offsets, _INT32.as_pointer())
        self.weights = builder.inttoptr(weights, self.bits.as_pointer())

    def pointer(self, address: Any, kind: Any) -> Any:
        return self.b.inttoptr(address, kind.as_pointer())

    def load(self, address: Any) -> Any:
        """The channels at that address, which need not be aligned to more than one number."""
        return self.b.load(self.pointer(address, self.vector), align=self.size)

    def store(self, vector: Any, address: Any) -> None:
        self.b.store(vector, self.pointer(address, self.vector), align=self.size)

    def shuffle(self, a: Any, b: Any, order: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(_INT32, len(order)), order)
        return self.b.shuffle_vector(a, b, mask)

    def repeated(self, number: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.b.insert_element(undefined, number, ir.Constant(_INT32, 0))
        return self.shuffle(first, undefined, [0] * self.count)

    def add(self, a: Any, b: Any) -> Any:
        return self.b.fadd(a, b, flags=_VECTOR_FLAGS)

    def multiply(self, a: Any, b: Any) -> Any:
        return self.b.fmul(a, b, flags=_VECTOR_FLAGS)

    def corner(self, sample: Any, k: int, stride: Any) -> tuple[Any, Any]:
        """(byte offset of a corner's channels, its weight repeated)."""
        index = self.b.add(self.b.shl(sample, _constant(2)), _constant(k))
        row = self.b.sext(self.b.load(self.b.gep(self.offsets, [index])), _INT64)
        offset = self.b.add(self.b.mul(row, stride), self.skipped_bytes)
        weight = self.b.load(self.b.gep(self.weights, [index]))
        return offset, self.repeated(weight)

    def outside(self, sample: Any) -> Any:
        """Whether the sample has no corner: its first row is −1."""
        index = self.b.shl(sample, _constant(2))
        row = self.b.load(self.b.gep(self.offsets, [index]))
        return self.b.icmp_signed("<", row, ir.Constant(_INT32, 0))

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
        four = ir.Constant(ir.VectorType(self.bits, 4), ir.Undefined)
        for k, part in enumerate(parts):
            total = self.b.extract_element(part, ir.Constant(_INT32, 0))
            for c in range(1, count):
                total = self.add(total, self.b.extract_element(part, ir.Constant(_INT32, c)))
            four = self.b.insert_element(four, total, ir.Constant(_INT32, k))
        return four


def _constant(number: int) -> Any:
    return ir.Constant(_INT64, number)


def _parts(width: int, size: int) -> list[range]:
    """The channels of a head, in parts that fit the registers."""
    step = _WIDEST_BYTES // size
    return [range(first, min(first + step, width)) for first in range(0, width, step)]


@_inline
def _gather(
    typing: Any, like: Any, width: Any, out: Any, value: Any, stride: Any, rows: Any, w: Any, n: Any
) -> Any:
    """Set the head at address out to the sum over n samples and four corners of weight · row.

    like: an array, for its precision; width: a tuple as long as a head has channels; value: the
    address of row 0, stride: bytes from row to row; rows, w: addresses of 4·n int32 and weights
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, out, value, stride, offsets, weights, samples = arguments
        for channels in _parts(len(width), like.dtype.bitwidth // 8):
            r = _Rows(builder, like.dtype, channels, offsets, weights)
            zero = ir.Constant(r.vector, [0.0] * r.count)
            before = builder.block
            head, body, latch, done = (
                builder.append_basic_block(name) for name in ("head", "body", "latch", "done")
            )
            builder.cbranch(builder.icmp_signed(">", samples, _constant(0)), head, done)
            builder.position_at_end(head)
            sample, sum_ = builder.phi(_INT64), builder.phi(r.vector)
            builder.cbranch(r.outside(sample), latch, body)
            builder.position_at_end(body)
            total = sum_
            for k in range(4):
                offset, weight = r.corner(sample, k, stride)
                total = r.add(total, r.multiply(r.load(builder.add(value, offset)), weight))
            builder.branch(latch)
            builder.position_at_end(latch)
            after = builder.phi(r.vector)
            after.add_incoming(sum_, head)
            after.add_incoming(total, body)
            following = builder.add(sample, _constant(1))
            sample.add_incoming(_constant(0), before)
            sample.add_incoming(following, latch)
            sum_.add_incoming(zero, before)
            sum_.add_incoming(after, latch)
            builder.cbranch(builder.icmp_signed("<", following, samples), head, done)
            builder.position_at_end(done)
            result = builder.phi(r.vector)
            result.add_incoming(zero, before)
            result.add_incoming(after, latch)
            r.store(result, builder.add(out, r.skipped_bytes))
        return context.get_dummy_value()

    return types.void(like, width, *[types.uintp] * 5, types.intp), generate


@_inline
def _scatter(
    typing: Any,
    like: Any,
    width: Any,
    grad: Any,
    value: Any,
    grad_value: Any,
    stride: Any,
    rows: Any,
    w: Any,
    dots: Any,
    n: Any,
) -> Any:
    """Add weight · grad to every corner's row of grad_value; dots (n, 4) are grad · row of value.

    Arguments as in _gather; the rows of grad_value lie as those of value.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, grad, value, grad_value, stride, offsets, weights, dots, samples = arguments
        for channels in _parts(len(width), like.dtype.bitwidth // 8):
            r = _Rows(builder, like.dtype, channels, offsets, weights)
            four = ir.VectorType(r.bits, 4)
            g = r.load(builder.add(grad, r.skipped_bytes))
            before = builder.block
            head, body, latch, done = (
                builder.append_basic_block(name) for name in ("head", "body", "latch", "done")
            )
            builder.cbranch(builder.icmp_signed(">", samples, _constant(0)), head, done)
            builder.position_at_end(head)
            sample = builder.phi(_INT64)
            builder.cbranch(r.outside(sample), latch, body)
            builder.position_at_end(body)
            corners = [r.corner(sample, k, stride) for k in range(4)]
            products = [r.multiply(g, r.load(builder.add(value, at))) for at, _ in corners]
            # One corner after the other: two that are clamped may be the same row.
            for offset, weight in corners:
                address = builder.add(grad_value, offset)
                r.store(r.add(r.load(address), r.multiply(g, weight)), address)
            place = builder.add(dots, builder.mul(sample, _constant(4 * r.size)))
            sums, pointer = r.sums(products), r.pointer(place, four)
            if channels.start:
                sums = r.add(sums, builder.load(pointer, align=r.size))
            builder.store(sums, pointer, align=r.size)
            builder.branch(latch)
            builder.position_at_end(latch)
            following = builder.add(sample, _constant(1))
            sample.add_incoming(_constant(0), before)
            sample.add_incoming(following, latch)
            builder.cbranch(builder.icmp_signed("<", following, samples), head, done)
            builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(like, width, *[types.uintp] * 7, types.intp), generate


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
    seen (6·s,), if it is not None: the fractions x and y, and which of left, right, high, low are
    inside. (None, and not an empty array: numba removes the branch, which no vector code survives.)
    """
    real = locations.dtype.type
    zero, half, one, two, nan = real(0), real(0.5), real(1), real(2), real(np.nan)
    largest = real(np.finfo(locations.dtype).max)
    none, unit = np.int32(0), np.int32(1)
    heights, widths, firsts = sizes[0], sizes[1], sizes[2]
    tall, wide = sides[0], sides[1]
    for s in range(attention.shape[0]):
        x = locations[2 * s] * wide[s] - half
        y = locations[2 * s + 1] * tall[s] - half
        # Just outside is as good as far outside, and fits an integer. A NaN fails the first test.
        nx = x if x > -two else -two
        nx = nx if nx < wide[s] + one else wide[s] + one
        ny = y if y > -two else -two
        ny = ny if ny < tall[s] + one else tall[s] + one
        # The floor. numba's math.floor is a call that no vector code survives; np.int32() alone
        # rounds towards zero.
        x0, y0 = np.int32(nx), np.int32(ny)
        x0 -= np.int32(real(x0) > nx)
        y0 -= np.int32(real(y0) > ny)
        x1, y1 = x0 + unit, y0 + unit
        right, low = nx - real(x0), ny - real(y0)
        height, width = heights[s], widths[s]
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
            seen[6 * s + 2], seen[6 * s + 3], seen[6 * s + 4], seen[6 * s + 5] = (
                in_left,
                in_right,
                in_high,
                in_low,
            )
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
        above, below = firsts[s] + y0 * width, firsts[s] + y1 * width
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
    width: Any,
    value: Any,
    shapes: Any,
    locations: Any,
    attention: Any,
    out: Any,
    first: int,
    last: int,
) -> None:
    """Queries first..last, counted through all images: out (N·Q, M·C) is set.

    width: tuple of C times None; value (N, S, M·C), shapes (L, 2), locations (N·Q, M, L·P·2),
    attention (N·Q, M, L·P)
    """
    images, pixels, _ = value.shape
    heads, samples = attention.shape[1], attention.shape[2]
    queries = attention.shape[0] // images
    size = value.itemsize
    wide = len(width) * size
    stride = heads * wide
    sizes, sides = _levels(shapes, samples // shapes.shape[0], heads, value)
    rows = np.empty(4 * heads * samples, np.int32)
    weights = np.empty(4 * heads * samples, value.dtype)
    for task in range(first, last):
        places, strengths = locations[task].reshape(-1), attention[task].reshape(-1)
        _corners(places, strengths, sizes, sides, rows, weights, None)
        image = value.ctypes.data + (task // queries) * pixels * stride
        for m in range(heads):
            _gather(
                value,
                width,
                out.ctypes.data + (task * heads + m) * wide,
                image + m * wide,
                stride,
                rows.ctypes.data + 16 * m * samples,
                weights.ctypes.data + 4 * size * m * samples,
                samples,
            )


def backward_kernel(
    width: Any,
    value: Any,
    shapes: Any,
    locations: Any,
    attention: Any,
    grad: Any,
    grad_value: Any,
    grad_locations: Any,
    grad_attention: Any,
    first: int,
    last: int,
) -> None:
    """Heads first..last, counted through all images; grad (N·Q, M·C), the rest as forward_kernel.

    A head of an image is one task: it alone adds to its part of the value gradient (which comes
    in as zeros), in the order of the queries, so there are no races, no atomics and no dependence
    on the threads.
    """
    images, pixels, _ = value.shape
    heads, samples = attention.shape[1], attention.shape[2]
    queries = attention.shape[0] // images
    size, channels = value.itemsize, len(width)
    wide = channels * size
    sizes, sides = _levels(shapes, samples // shapes.shape[0], _TOGETHER, value)
    count = _TOGETHER * samples
    places, weights = np.empty(2 * count, value.dtype), np.empty(count, value.dtype)
    rows, mixed = np.empty(4 * count, np.int32), np.empty(4 * count, value.dtype)
    seen, dots = np.empty(6 * count, value.dtype), np.empty(4 * count, value.dtype)
    by_place, by_weight = np.empty(2 * count, value.dtype), np.empty(count, value.dtype)
    # With many queries the head is copied together. Where it lies, one row every M·C numbers, all
    # of its rows fall into a few sets of the cache and drive each other out.
    together = queries * samples >= pixels
    rows_of_head = pixels if together else 0
    values = _aligned(rows_of_head, channels, value)
    grads = _aligned(rows_of_head, channels, value)
    for task in range(first, last):
        n = task // heads
        m = task - n * heads
        at = (n * pixels * heads + m) * wide
        source, target, stride = value.ctypes.data + at, grad_value.ctypes.data + at, heads * wide
        if together:
            values[:] = value[n, :, m * channels : (m + 1) * channels]
            grads[:] = 0
            source, target, stride = values.ctypes.data, grads.ctypes.data, wide
        for begin in range(n * queries, (n + 1) * queries, _TOGETHER):
            number = min(_TOGETHER, (n + 1) * queries - begin)
            used = number * samples
            for q in range(number):
                places[2 * q * samples : 2 * (q + 1) * samples] = locations[begin + q, m]
                weights[q * samples : (q + 1) * samples] = attention[begin + q, m]
            dots[:] = 0
            _corners(places[: 2 * used], weights[:used], sizes, sides, rows, mixed, seen)
            for q in range(number):
                s = q * samples
                _scatter(
                    value,
                    width,
                    grad.ctypes.data + ((begin + q) * heads + m) * wide,
                    source,
                    target,
                    stride,
                    rows.ctypes.data + 16 * s,
                    mixed.ctypes.data + 4 * size * s,
                    dots.ctypes.data + 4 * size * s,
                    samples,
                )
            _slopes(dots, weights[:used], sides, seen, by_place, by_weight)
            for q in range(number):
                grad_locations[begin + q, m] = by_place[2 * q * samples : 2 * (q + 1) * samples]
                grad_attention[begin + q, m] = by_weight[q * samples : (q + 1) * samples]
        if together:
            grad_value[n, :, m * channels : (m + 1) * channels] = grads
