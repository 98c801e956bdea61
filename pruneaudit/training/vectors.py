"""Vectors of images, for kernels that are compiled on the CPU at first use (Numba).

One image per SIMD lane: a batch is cut into tiles of as many images as a vector register holds. Every operation on a
tile is then a plain loop over whole vectors, whatever widths pruning left, and an image never meets another one before
the sums over the batch.

Arithmetic is IEEE; products and sums may be contracted to fused multiply-adds, as C compilers do; nothing is reordered
but where a function asks for it. Importing this module needs Numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils, config

#: Bytes of a vector: with AVX-512 one register; elsewhere, or where the target is named, one or two, which still fit.
VECTOR_BYTES = (
    64 if getattr(config, "CPU_NAME", None) is None and binding.get_host_cpu_features().get("avx512f") else 32
)
#: What may be contracted; reordering ("fast" mathematics) is not.
CONTRACT = ("contract",)


def lanes(element_bytes: int) -> int:
    """Images of a tile."""
    return VECTOR_BYTES // element_bytes


def compiled(function: Callable[..., Any], also: tuple[str, ...] = ()) -> Any:
    """Compile once and keep the machine code: in the package, else in the user's cache, else for this process only.

    Args:
        function: What to compile.
        also: What its arithmetic may do beside contracting, in LLVM's words: ``reassoc`` lets a sum be taken in
            vectors, always in the same order of one machine code.
    """
    options: dict[str, Any] = {"fastmath": {*CONTRACT, *also}, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither folder can be written, and NUMBA_CACHE_DIR names none.
        return njit(**options)(function)


class Emitter:
    """Writes LLVM instructions on vectors of one type.

    Attributes:
        bytes: Bytes of an element.
        lanes: Elements of a vector.
        element: LLVM's type of one.
        type: LLVM's type of a vector.
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, dtype: types.Float) -> None:
        self.context = context
        self.builder = builder
        self.bytes = dtype.bitwidth // 8
        self.lanes = lanes(self.bytes)
        self.element = context.get_value_type(dtype)
        self.type = ir.VectorType(self.element, self.lanes)

    def place(self, pointer: ir.Value, elements: int) -> ir.Value:
        """Address that many elements, or vectors, behind another."""
        return self.builder.gep(pointer, [ir.Constant(ir.IntType(64), elements)])

    def data(self, kind: types.Array, array: ir.Value, at: ir.Value) -> ir.Value:
        """Address of an array's element, counted as if it were flat."""
        start = cgutils.create_struct_proxy(kind)(self.context, self.builder, array).data
        return self.builder.gep(start, [at])

    def lengths(self, kind: types.Array, array: ir.Value) -> list[Whole]:
        """An array's shape."""
        shape = cgutils.create_struct_proxy(kind)(self.context, self.builder, array).shape
        return [Whole(self.builder, length) for length in cgutils.unpack_tuple(self.builder, shape, kind.ndim)]

    def _vector(self, pointer: ir.Value, number: int) -> ir.Value:
        return self.builder.bitcast(self.place(pointer, number * self.lanes), self.type.as_pointer())

    def load(self, pointer: ir.Value, number: int) -> ir.Value:
        """The vector that lies ``number`` vectors behind an address."""
        return self.builder.load(self._vector(pointer, number), align=self.bytes)

    def store(self, value: ir.Value, pointer: ir.Value, number: int) -> None:
        """Write a vector ``number`` vectors behind an address."""
        self.builder.store(value, self._vector(pointer, number), align=self.bytes)

    def fill(self, scalar: ir.Value) -> ir.Value:
        """A vector with one number in all lanes."""
        nothing = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, nothing, zeros)

    def multiply_add(self, one: ir.Value, other: ir.Value, total: ir.Value) -> ir.Value:
        """Product and sum, in one rounding where the processor has it."""
        product = self.builder.fmul(one, other, flags=CONTRACT)
        return self.builder.fadd(product, total, flags=CONTRACT)

    def where_positive(self, tested: ir.Value, value: ir.Value) -> ir.Value:
        """A vector where another is not zero or less (a NaN is not), zero elsewhere."""
        nothing = ir.Constant(self.type, [0.0] * self.lanes)
        return self.builder.select(self.builder.fcmp_ordered("<=", tested, nothing), nothing, value)

    def sum_of_lanes(self, vector: ir.Value) -> ir.Value:
        """All lanes of a vector in one number: halves are added to each other."""
        count = self.lanes
        nothing = ir.Constant(self.type, ir.Undefined)
        while count > 1:
            count //= 2
            order = [*range(count, 2 * count), *[0] * (self.lanes - count)]
            upper = self.builder.shuffle_vector(
                vector, nothing, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), order)
            )
            vector = self.builder.fadd(vector, upper)
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


class Whole:
    """An integer of the code that is written, with Python's operators; divisors are positive.

    Args:
        builder: Where its instructions go.
        value: LLVM's.
    """

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    def like(self, number: Whole | int) -> Whole:
        """A number of the same type."""
        return number if isinstance(number, Whole) else self._new(ir.Constant(self.value.type, number))

    def _new(self, value: ir.Value) -> Whole:
        return Whole(self.builder, value)

    def __add__(self, other: Whole | int) -> Whole:
        return self._new(self.builder.add(self.value, self.like(other).value))

    def __sub__(self, other: Whole | int) -> Whole:
        return self._new(self.builder.sub(self.value, self.like(other).value))

    def __rsub__(self, other: int) -> Whole:
        return self.like(other) - self

    def __mul__(self, other: Whole | int) -> Whole:
        return self._new(self.builder.mul(self.value, self.like(other).value))

    def __mod__(self, other: Whole | int) -> Whole:
        rest = self._new(self.builder.srem(self.value, self.like(other).value))
        return (rest < 0).choose(rest + other, rest)

    def __floordiv__(self, other: Whole | int) -> Whole:
        return self._new(self.builder.sdiv((self - self % other).value, self.like(other).value))

    def __lt__(self, other: Whole | int) -> Whole:
        return self._new(self.builder.icmp_signed("<", self.value, self.like(other).value))

    def __gt__(self, other: Whole | int) -> Whole:
        return self.like(other) < self

    def __ge__(self, other: Whole | int) -> Whole:
        return self._new(self.builder.icmp_signed(">=", self.value, self.like(other).value))

    def choose(self, one: Whole, other: Whole) -> Whole:
        """One number where this, a bit, is set, and the other one where it is not."""
        return self._new(self.builder.select(self.value, one.value, other.value))

    def at_most(self, other: Whole | int) -> Whole:
        """The smaller one of both."""
        return (self < other).choose(self, self.like(other))

    @contextmanager
    def each(self) -> Iterator[Whole]:
        """A loop over all numbers from zero up to this one, which is not among them."""
        with cgutils.for_range(self.builder, self.value) as loop:
            yield self._new(loop.index)

    @contextmanager
    def up_to(self, end: Whole, step: int) -> Iterator[tuple[Whole, Whole]]:
        """A loop from this number on before an end: the number, and how many came before."""
        by = self.like(step).value
        with cgutils.for_range_slice(self.builder, self.value, end.value, by, self.value.type) as (index, count):
            yield self._new(index), self._new(count)


# What every network has at its ends


@compiled
def into_lanes(images, tiles):  # type: ignore[no-untyped-def]
    """From a batch ``[B, H, W, C]`` to ``[T, C, H, W, L]``; lanes without an image are blank."""
    batch, height, breadth, channels = images.shape
    width = tiles.shape[4]
    for tile in range(tiles.shape[0]):
        present = min(width, batch - tile * width)
        for channel in range(channels):
            for row in range(height):
                for lane in range(width):
                    for column in range(breadth):
                        tiles[tile, channel, row, column, lane] = (
                            images[tile * width + lane, row, column, channel] if lane < present else 0
                        )


@compiled
def crops_into_lanes(images, index, shift, mirrored, mean, scale, tiles):  # type: ignore[no-untyped-def]
    """Crops of images as they are kept, normalised, to ``[T, C, H, W, L]``; lanes without an image are blank.

    Args:
        images: All of them, with what borders they have, ``[N, H', W', C]`` uint8.
        index: Which ones are wanted, ``[B]``.
        shift: Row and column of each crop's upper left corner, ``[B, 2]``.
        mirrored: Which crops are mirrored left to right, ``[B]``.
        mean: Taken from every pixel of a channel, ``[C]``.
        scale: By what the rest is multiplied, ``[C]``.
        tiles: Where they go.
    """
    number, channels, height, breadth, width = tiles.shape
    kind = tiles.dtype.type
    for tile in range(number):
        present = min(width, len(index) - tile * width)
        for channel in range(channels):
            for row in range(height):
                for lane in range(width):
                    if lane >= present:
                        for column in range(breadth):
                            tiles[tile, channel, row, column, lane] = 0
                        continue
                    place = tile * width + lane
                    image, line, first = index[place], shift[place, 0] + row, shift[place, 1]
                    for column in range(breadth):
                        seen = first + (breadth - 1 - column if mirrored[place] else column)
                        pixel = kind(images[image, line, seen, channel])
                        tiles[tile, channel, row, column, lane] = (pixel - mean[channel]) * scale[channel]


@compiled
def cross_entropy(logits, labels, smoothing, losses, hits):  # type: ignore[no-untyped-def]
    """Losses and hits, ``[B]``, of logits ``[classes, N]``, N ≥ B, which become the gradients of the mean loss."""
    classes, batch = logits.shape[0], labels.shape[0]
    zero, one = logits.dtype.type(0), logits.dtype.type(1)
    on = one - smoothing
    off = smoothing / logits.dtype.type(classes)
    for image in range(batch):
        best = 0
        for number in range(1, classes):
            if logits[number, image] > logits[best, image]:
                best = number
        top, label = logits[best, image], labels[image]
        total, below = zero, zero
        for number in range(classes):
            total += math.exp(logits[number, image] - top)
            below += top - logits[number, image]
        log_total = math.log(total)
        hits[image] = best == label
        losses[image] = on * (log_total + top - logits[label, image]) + off * (classes * log_total + below)
        for number in range(classes):
            share = math.exp(logits[number, image] - top) / total
            wanted = off + (on if number == label else zero)
            logits[number, image] = (share - wanted) / logits.dtype.type(batch)
    for number in range(classes):
        for image in range(batch, logits.shape[1]):
            logits[number, image] = zero


@compiled
def descend(weights, gradients, velocity, mask, rate, momentum, decay, nesterov):  # type: ignore[no-untyped-def]
    """One step of SGD on flat arrays, as ``torch.optim.SGD`` defines it; the mask applies to gradients."""
    for number in range(weights.size):
        gradient = gradients[number] * mask[number] + decay * weights[number]
        velocity[number] = momentum * velocity[number] + gradient
        weights[number] -= rate * (gradient + momentum * velocity[number] if nesterov else velocity[number])
