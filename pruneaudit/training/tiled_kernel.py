"""Layers of convolutional networks, forward and backward, compiled for the CPU at first use (Numba).

Maps lie as ``[T, cells, L]``: T tiles of L images, a cell for each channel, row and column of an image (with some to
spare, so that tiles do not compete for the same sets of a cache). Widths and heights are arguments; the length of a
row is compiled in, as a row of sums has to stay in registers: :func:`convolution` makes the passes for a geometry.

Weights lie as torch has them, ``[O, C, K, K]``, and are spread over lanes as they are read. Outside of an image
nothing is computed: on maps of 2×2 pixels that is more than half of a padded 3×3 convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pruneaudit.training.vectors import Emitter, Whole, compiled

#: Sums that are kept in registers, of sixteen: some are needed for what is multiplied.
_SUMS = 8
#: Columns of a row that are computed at once, at most.
_COLUMNS = 8


# Two loops in LLVM's vectors


def _written(function: Callable[..., Any]) -> Any:
    """An operation that is written in LLVM's instructions; numbers that are constants come as such."""
    return intrinsic(prefer_literal=True)(function)


def _variants(builder: Any, number: Any, count: int, emit: Any) -> None:
    """Code for each value that a number takes below ``count``, of which one runs."""
    if count == 1:
        emit(0)
        return
    blocks = [builder.append_basic_block(f"variant{value}") for value in range(count)]
    after = builder.append_basic_block("after")
    switch = builder.switch(number, blocks[-1])
    for value, block in enumerate(blocks):
        if value < count - 1:
            switch.add_case(ir.Constant(number.type, value), block)
        builder.position_at_end(block)
        emit(value)
        builder.branch(after)
    builder.position_at_end(after)


def _sums(write: Emitter, count: int) -> list[Any]:
    """Vectors that LLVM keeps in registers."""
    return [cgutils.alloca_once(write.builder, write.type) for _ in range(count)]


def _rows(left: Whole, count: int) -> list[Whole]:
    """Numbers of the next ``count`` rows; where fewer are ``left``, the last one stands for what is missing."""
    return [left.like(row).at_most(left - 1) for row in range(count)]


@dataclass(frozen=True)
class _Rows:
    """Rows of a map's channels: of all channels the one that lies at the same place.

    Attributes:
        kind: Numba's type of the map.
        array: The map.
        at: Place of the row in the first channel that counts.
        step: From there to the next channel's.
        wide: Columns of a row.
    """

    kind: Any
    array: Any
    at: Whole
    step: Whole
    wide: int


@dataclass(frozen=True)
class _Weights:
    """A layer's weights from a block of rows on.

    Attributes:
        kind: Numba's type of the weights.
        array: All of the layer's.
        at: Place of the block's first number.
        row_step: From one row of the block to the next.
        channel_step: From a channel that is summed over to the next.
    """

    kind: Any
    array: Any
    at: Whole
    row_step: Whole | int
    channel_step: Whole | int


@dataclass(frozen=True)
class _Kept:
    """Sums over the batch that are taken part by part.

    Attributes:
        sums: Address of a vector for each weight.
        begins: Whether this part is the first one, a bit.
        ends: Whether it is the last one.
    """

    sums: Any
    begins: Any
    ends: Any


def _correlate(
    write: Emitter, is_backward: bool, shape: _Geometry, some: int, part: Whole, outputs: _Rows, rows: list[Whole],
    inputs: _Rows, channels: Whole, weights: _Weights, begins: list[Any], taps: tuple[Whole, Whole, int], adds: Any,
) -> None:  # fmt: skip
    """One row of outputs of a block of channels, or what one row of inputs gets back from outputs.

    Args:
        write: Where to.
        is_backward: Whether ``outputs`` are gradients of a layer's inputs, and ``inputs`` those of its outputs.
        shape: The convolution's.
        some: Output columns that are computed at once; divides a row.
        part: Which of them.
        outputs: Where to write.
        rows: Which of its channels.
        inputs: What to read: the row that the first row of taps sees.
        channels: Their number.
        weights: The layer's, from the block's first row on.
        begins: What sums begin with, for each row.
        taps: First row of the kernel, where to stop, and the step between two of them.
        adds: Whether outputs are added to what is there, a bit.
    """
    builder, (begin, end, by) = write.builder, taps

    def triples(start: int) -> list[tuple[int, int, int]]:
        """Output column within this part, input column, tap."""
        found = []
        for one in range(shape.length):
            for tap in range(shape.kernel):
                other = one - tap + shape.padding
                if other % shape.stride or not 0 <= other // shape.stride < shape.reach:
                    continue
                out, read = (one, other // shape.stride) if is_backward else (other // shape.stride, one)
                if start <= out < start + some:
                    found.append((out - start, read, tap))
        return sorted(found, key=lambda triple: (triple[1], triple[2]))

    goals = [write.data(outputs.kind, outputs.array, (outputs.at + row * outputs.step).value) for row in rows]
    fields = [write.data(weights.kind, weights.array, (weights.at + row * weights.row_step).value) for row in rows]
    size, many = inputs.wide * write.lanes, range(len(rows))

    def variant(value: int) -> None:
        sums = [_sums(write, some) for _ in many]
        place = value * some
        for row in many:
            for column in range(some):
                builder.store(write.fill(begins[row]), sums[row][column])
        with builder.if_then(adds):
            for row in many:
                for column in range(some):
                    given = builder.fadd(write.load(goals[row], place + column), builder.load(sums[row][column]))
                    builder.store(given, sums[row][column])
        wanted = triples(place)
        with channels.each() as channel, begin.up_to(end, by) as (tap, count):
            line = count * size
            seen = inputs.at + channel * inputs.step
            read = write.data(inputs.kind, inputs.array, (seen - line if is_backward else seen + line).value)
            offset = channel * weights.channel_step + tap * shape.kernel
            sources = [builder.gep(field, [offset.value]) for field in fields]
            vectors = {column: write.load(read, column) for column in sorted({triple[1] for triple in wanted})}
            factors = {
                (row, which): write.fill(builder.load(write.place(sources[row], which)))
                for row in many
                for which in sorted({triple[2] for triple in wanted})
            }
            totals = [[builder.load(slot) for slot in sums[row]] for row in many]
            for column, which, factor in wanted:
                for row in many:
                    found = totals[row][column]
                    totals[row][column] = write.multiply_add(factors[row, factor], vectors[which], found)
            for row in many:
                for slot, total in zip(sums[row], totals[row], strict=True):
                    builder.store(total, slot)
        for row in many:
            for column in range(some):
                write.store(builder.load(sums[row][column]), goals[row], place + column)

    _variants(builder, part.value, outputs.wide // some, variant)


def _products(
    write: Emitter, shape: _Geometry, gradients: _Rows, rows: list[Whole], inputs: _Rows, channels: list[Whole],
    tiles: tuple[Whole, Whole], tile_steps: tuple[Whole, Whole], lines: Whole, weights: _Weights, kept: _Kept,
) -> None:  # fmt: skip
    """Gradients of one row of the kernels that lead from some input channels to some output channels.

    Args:
        write: Where to.
        shape: The convolution's.
        gradients: Of outputs: the first row that counts.
        rows: Which of their channels.
        inputs: The layer's: the row that the kernel's row sees there.
        channels: Which of their channels.
        tiles: The first tile, and how many.
        tile_steps: From one tile of gradients to the next, and from one of inputs.
        lines: Rows of outputs that count.
        weights: Where to write.
        kept: Where sums of other tiles are kept.
    """
    builder = write.builder
    sums = {(row, channel): _sums(write, shape.kernel) for row in rows for channel in channels}
    places = {
        (row, channel): weights.at + row * weights.row_step + channel * weights.channel_step for row, channel in sums
    }
    nothing = write.fill(ir.Constant(write.element, 0.0))
    with builder.if_else(kept.begins) as (begins, goes_on):
        with begins:
            for slots in sums.values():
                for slot in slots:
                    builder.store(nothing, slot)
        with goes_on:
            for number, slots in sums.items():
                before = builder.gep(kept.sums, [(places[number] * write.lanes).value])
                for tap, slot in enumerate(slots):
                    builder.store(write.load(before, tap), slot)
    with tiles[1].each() as count, lines.each() as line:
        tile = tiles[0] + count
        shift = gradients.at + tile * tile_steps[0] + line * (gradients.wide * write.lanes)
        read = inputs.at + tile * tile_steps[1] + line * (shape.stride * inputs.wide * write.lanes)
        fields = {
            row: write.data(gradients.kind, gradients.array, (shift + row * gradients.step).value) for row in rows
        }
        maps = {
            channel: write.data(inputs.kind, inputs.array, (read + channel * inputs.step).value) for channel in channels
        }
        vectors: dict[tuple[Whole, int], Any] = {}
        totals = {number: [builder.load(slot) for slot in slots] for number, slots in sums.items()}
        for column in range(gradients.wide):
            given = {row: write.load(field, column) for row, field in fields.items()}
            for tap in range(shape.kernel):
                other = column * shape.stride + tap - shape.padding
                if 0 <= other < inputs.wide:
                    for channel in channels:
                        if (channel, other) not in vectors:
                            vectors[channel, other] = write.load(maps[channel], other)
                        for row in rows:
                            found = totals[row, channel][tap]
                            totals[row, channel][tap] = write.multiply_add(given[row], vectors[channel, other], found)
        for number, slots in sums.items():
            for slot, total in zip(slots, totals[number], strict=True):
                builder.store(total, slot)
    with builder.if_else(kept.ends) as (ends, goes_on):
        with ends:
            for number, slots in sums.items():
                first = write.data(weights.kind, weights.array, places[number].value)
                for tap, slot in enumerate(slots):
                    builder.store(write.sum_of_lanes(builder.load(slot)), write.place(first, tap))
        with goes_on:
            for number, slots in sums.items():
                after = builder.gep(kept.sums, [(places[number] * write.lanes).value])
                for tap, slot in enumerate(slots):
                    write.store(builder.load(slot), after, tap)


def _flow(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    """Gradients ``a`` of outputs ``b`` through a ReLU, on to ``c``, and their sums alone and along ``d``.

    Nothing is put back where it was read: LLVM makes a masked store of that, which takes as long as a dozen others.
    """
    gradient = at.a()
    if variant % 2:
        gradient = write.where_positive(at.b(), gradient)
    if variant >= 2:
        at.c(write.builder.fadd(gradient, at.c()) if variant >= 4 else gradient)
    sums[0](write.builder.fadd(gradient, sums[0]()))
    sums[1](write.multiply_add(gradient, write.builder.fsub(at.d(), scalars[0]), sums[1]()))


def _affine(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    value = write.multiply_add(at.a(), scalars[0], scalars[1])
    value = write.builder.fadd(value, at.c()) if variant % 2 else value
    at.b(write.where_positive(value, value) if variant >= 2 else value)


def _ebb(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    gradient = write.where_positive(at.d(), at.a()) if variant % 2 else at.a()
    value = write.multiply_add(at.c(), scalars[1], write.multiply_add(gradient, scalars[0], scalars[2]))
    at.b(write.builder.fadd(value, at.b()) if variant >= 2 else value)


def _deviations(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    for number, values in enumerate((at.a, at.b)):
        apart = write.builder.fsub(values(), scalars[number])
        sums[number](write.multiply_add(apart, apart, sums[number]()))


def _totals(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    # Two at once: a sum alone waits for itself.
    for number, values in enumerate((at.a, at.b)):
        sums[number](write.builder.fadd(values(), sums[number]()))


def _rectify(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    at.c(write.where_positive(at.a(), at.a()))


def _rectified(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    value = write.where_positive(at.b(), at.a())
    at.c(write.builder.fadd(value, at.c()) if variant else value)


def _sum(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    at.c(write.builder.fadd(at.a(), at.b()))


def _copy(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    at.c(write.builder.fadd(at.a(), at.c()) if variant else at.a())


#: What :func:`run` does with vectors a, b, c, d that lie at the same place of four runs, and in how many variants.
_RUNS: dict[str, tuple[int, Any]] = {
    "totals": (1, _totals),
    "deviations": (1, _deviations),
    "affine": (4, _affine),
    "flow": (6, _flow),
    "ebb": (4, _ebb),
    "rectify": (1, _rectify),
    "rectified": (2, _rectified),
    "sum": (1, _sum),
    "copy": (2, _copy),
}
RECTIFY, RECTIFIED, SUM, COPY = range(4)


class _Access:
    """Reads a vector where it is called with nothing, and writes what it is called with."""

    def __init__(self, write: Emitter, pointer: Any) -> None:
        self._write, self._pointer = write, pointer

    def __call__(self, value: Any = None) -> Any:
        if value is None:
            return self._write.load(self._pointer, 0)
        return self._write.store(value, self._pointer, 0)


class _Place:
    """The vectors at one place of four runs."""

    def __init__(self, write: Emitter, pointers: list[Any]) -> None:
        self.a, self.b, self.c, self.d = (_Access(write, pointer) for pointer in pointers)


@_written
def run(  # type: ignore[no-untyped-def]
    typing, kind, variant, count, a, a_at, b, b_at, c, c_at, d, d_at, first, second, third, sums
):  # fmt: skip
    """One of the loops of :data:`_RUNS` over ``count`` vectors that lie one after the other.

    Args:
        typing: Numba's context.
        kind: Name of the loop.
        variant: Which of its variants.
        count: Vectors.
        a: An array; ``a_at`` is the flat place of the first vector. So are the others.
        a_at: See ``a``.
        b: See ``a``.
        b_at: See ``a``.
        c: See ``a``.
        c_at: See ``a``.
        d: See ``a``.
        d_at: See ``a``.
        first: A number for all lanes; so are the next two.
        second: See ``first``.
        third: See ``first``.
        sums: Two vectors, ``[2, L]``, to which sums are added.
    """
    variants, body = _RUNS[kind.literal_value]

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write = Emitter(context, builder, a.dtype)
        starts = [write.data(array, values[3 + 2 * n], values[4 + 2 * n]) for n, array in enumerate((a, b, c, d))]
        scalars = [
            write.fill(context.cast(builder, value, given, a.dtype))
            for value, given in zip(values[11:14], (first, second, third), strict=True)
        ]
        totals = write.data(sums, values[14], ir.Constant(values[2].type, 0))

        def emit_variant(number: int) -> None:
            slots = [cgutils.alloca_once(builder, write.type) for _ in range(2)]
            for place, slot in enumerate(slots):
                builder.store(write.load(totals, place), slot)
            accesses = [_Slot(builder, slot) for slot in slots]
            with cgutils.for_range(builder, values[2]) as loop:
                ahead = builder.mul(loop.index, ir.Constant(loop.index.type, write.lanes))
                body(write, number, _Place(write, [builder.gep(start, [ahead]) for start in starts]), scalars, accesses)
            for place, slot in enumerate(slots):
                write.store(builder.load(slot), totals, place)

        _variants(builder, context.cast(builder, values[1], signature.args[1], types.intp), variants, emit_variant)
        return context.get_dummy_value()

    whole = types.intp
    signature = types.void(kind, variant, whole, a, whole, b, whole, c, whole, d, whole, first, second, third, sums)
    return signature, emit


class _Slot:
    """Reads and writes a register as :class:`_Access` does memory."""

    def __init__(self, builder: Any, slot: Any) -> None:
        self._builder, self._slot = builder, slot

    def __call__(self, value: Any = None) -> Any:
        return self._builder.load(self._slot) if value is None else self._builder.store(value, self._slot)


@_written
def lane_sum(typing, sums, number):  # type: ignore[no-untyped-def]
    """All lanes of one of two vectors, ``[2, L]``, in one number."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write = Emitter(context, builder, sums.dtype)
        at = builder.mul(values[1], ir.Constant(values[1].type, write.lanes))
        return write.sum_of_lanes(write.load(write.data(sums, values[0], at), 0))

    return sums.dtype(sums, types.intp), emit


@_written
def _clear(typing, sums):  # type: ignore[no-untyped-def]
    """Make two vectors, ``[2, L]``, zero."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write = Emitter(context, builder, sums.dtype)
        first = write.data(sums, values[0], ir.Constant(ir.IntType(64), 0))
        for number in range(2):
            write.store(write.fill(ir.Constant(write.element, 0.0)), first, number)
        return context.get_dummy_value()

    return types.void(sums), emit


# Convolutions

#: What :func:`convolution`'s function does.
FORWARD, TO_INPUTS, TO_WEIGHTS = range(3)


@dataclass(frozen=True)
class _Geometry:
    """A convolution as far as it is compiled in.

    Attributes:
        kernel: Rows and columns of a kernel.
        stride: Of both directions.
        padding: Of all sides, with zeros.
        length: Columns of the inputs.
    """

    kernel: int
    stride: int
    padding: int
    length: int

    @property
    def reach(self) -> int:
        """Columns of the outputs."""
        return (self.length + 2 * self.padding - self.kernel) // self.stride + 1


def _at_once(length: int, most: int) -> int:
    """Columns of a row that are computed together."""
    return max(part for part in range(1, most + 1) if length % part == 0)


@_written
def _passes(typing, kernel, stride, padding, length, which, one, other, weights, bias, tall, high, adds):  # type: ignore[no-untyped-def]
    """All passes of a convolution, see :func:`convolution`.

    They are written in LLVM as a whole: what Numba reads of Python costs it more than LLVM needs for all of this.
    """
    numbers = (kernel, stride, padding, length)
    shape = _Geometry(*(number.literal_value for number in numbers))

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write = Emitter(context, builder, one.dtype)
        maps, others, matrix, start = values[5:9]
        rows_in, rows_out = (Whole(builder, value) for value in values[9:11])
        tiles, cells, _ = write.lengths(one, maps)
        other_cells = write.lengths(other, others)[1]
        out, channels = write.lengths(weights, matrix)[:2]
        lanes, square = write.lanes, shape.kernel * shape.kernel
        plane_in, plane_out = rows_in * (shape.length * lanes), rows_out * (shape.reach * lanes)

        def correlation(is_backward: bool) -> None:
            wide = shape.length if is_backward else shape.reach
            goals = channels if is_backward else out
            some = _at_once(wide, _COLUMNS)
            few = _at_once(wide, _COLUMNS // 2)
            if some == 2 * few:
                # Two channels at once read half as much for each; the last of an odd number has whole columns.
                correlate_blocks(is_backward, few, 2, goals.like(0), goals // 2)
                correlate_blocks(is_backward, some, 1, goals - goals % 2, goals % 2)
            else:
                block = max(1, _SUMS // some)
                correlate_blocks(is_backward, some, block, goals.like(0), (goals + (block - 1)) // block)

        def correlate_blocks(is_backward: bool, some: int, block: int, first: Whole, blocks: Whole) -> None:
            wide, wide_in = (shape.length, shape.reach) if is_backward else (shape.reach, shape.length)
            goals, sources = (channels, out) if is_backward else (out, channels)
            plane, plane_read = (plane_in, plane_out) if is_backward else (plane_out, plane_in)
            # What is larger is read once: a tile's inputs, or the weights.
            by_row = out * channels * square > sources * plane_read
            with (tiles * blocks).each() as number:
                tile = by_row.choose(number % tiles, number // blocks)
                first_row = first + by_row.choose(number // tiles, number % blocks) * block
                rows = _rows(goals - first_row, block)
                biases = write.data(bias, start, first_row.value)
                begins = [builder.load(builder.gep(biases, [row.value])) for row in rows]
                with (rows_in if is_backward else rows_out).each() as line:
                    if is_backward:
                        # The rows of the kernel through which a row of outputs sees this line.
                        reached = line + shape.padding
                        begin = reached % shape.stride
                        behind = reached - begin >= rows_out * shape.stride
                        begin = behind.choose(reached - (rows_out - 1) * shape.stride, begin)
                        end = (reached + 1).at_most(shape.kernel)
                        seen = (reached - begin) // shape.stride
                        step = shape.stride
                    else:
                        top = line * shape.stride
                        begin = (top < shape.padding).choose(shape.padding - top, top.like(0))
                        end = (rows_in + shape.padding - top).at_most(shape.kernel)
                        seen = top - shape.padding + begin
                        step = 1
                    goal = (tile * other_cells + line * wide) * lanes + first_row * plane
                    read = (tile * cells + seen * wide_in) * lanes
                    if is_backward:
                        steps: tuple[Whole | int, Whole | int] = (square, channels * square)
                    else:
                        steps = (channels * square, square)
                    with line.like(wide // some).each() as part:
                        _correlate(
                            write, is_backward, shape, some, part, _Rows(other, others, goal, plane, wide), rows,
                            _Rows(one, maps, read, plane_read, wide_in), sources,
                            _Weights(weights, matrix, first_row * steps[0], *steps), begins, (begin, end, step),
                            builder.trunc(values[11], ir.IntType(1)),
                        )  # fmt: skip

        def weight_gradients() -> None:
            block = max(1, min(_SUMS, (_SUMS + 2) // shape.kernel))
            by_tile = write.lengths(bias, start)[0] >= out * channels * (square * lanes)
            parts, many = by_tile.choose(tiles, tiles.like(1)), by_tile.choose(tiles.like(1), tiles)
            sums = write.data(bias, start, ir.Constant(ir.IntType(64), 0))
            with parts.each() as number:
                kept = _Kept(sums, (number < 1).value, (number > parts - 2).value)
                some_gradients(block, (number * many, many), kept)

        def some_gradients(block: int, some: tuple[Whole, Whole], kept: _Kept) -> None:
            def products(row: Whole, channel: Whole, tap: Whole, rows: list[Whole], among: list[Whole]) -> None:
                # Outputs that see an input through this row of the kernel.
                above = (shape.padding - tap + (shape.stride - 1)) // shape.stride
                first = (tap < shape.padding).choose(above, tap.like(0))
                lines = ((rows_in + (shape.padding - 1) - tap) // shape.stride + 1).at_most(rows_out) - first
                seen = channel * plane_in + (first * shape.stride + tap - shape.padding) * (shape.length * lanes)
                given = row * plane_out + first * (shape.reach * lanes)
                at = (row * channels + channel) * square + tap * shape.kernel
                _products(
                    write, shape, _Rows(other, others, given, plane_out, shape.reach), rows,
                    _Rows(one, maps, seen, plane_in, shape.length), among, some, (other_cells * lanes, cells * lanes),
                    lines, _Weights(weights, matrix, at, channels * square, square), kept,
                )  # fmt: skip

            whole, nothing = out // block, out.like(0)
            with whole.each() as number, channels.each() as channel, out.like(shape.kernel).each() as tap:
                products(number * block, channel, tap, [nothing.like(row) for row in range(block)], [nothing])
            if block == 1:
                return
            # Rows that are left, each with several channels: one sum alone would wait for itself.
            parts = (channels + (block - 1)) // block
            with (out % block).each() as number, parts.each() as part, out.like(shape.kernel).each() as tap:
                channel = part * block
                products(whole * block + number, channel, tap, [nothing], _rows(channels - channel, block))

        passes = {
            FORWARD: lambda: correlation(is_backward=False),
            TO_INPUTS: lambda: correlation(is_backward=True),
            TO_WEIGHTS: weight_gradients,
        }
        _variants(builder, values[4], len(passes), lambda number: passes[number]())
        return context.get_dummy_value()

    whole = types.intp
    return types.void(*numbers, whole, one, other, weights, bias, whole, whole, types.boolean), emit


@cache
def convolution(kernel: int, stride: int, padding: int, length: int) -> Any:
    """A convolution's passes for rows of one length, as one function that is compiled once.

    Args:
        kernel: Rows and columns of a kernel.
        stride: Of both directions.
        padding: Of all sides, with zeros.
        length: Columns of the inputs.
    """

    @compiled
    def passes(which, one, other, weights, bias, tall, high, adds):  # type: ignore[no-untyped-def]
        """One of the passes between maps ``[C, tall, length]`` of inputs and ``[O, high, reach]`` of outputs.

        Args:
            which: ``FORWARD`` from inputs to outputs, ``TO_INPUTS`` from gradients of outputs to those of inputs, or
                ``TO_WEIGHTS`` from inputs and gradients of outputs to those of weights.
            one: What is read, ``[T, cells, L]``.
            other: What is written; ``TO_WEIGHTS`` reads gradients of outputs there.
            weights: ``[O, C, K, K]``; ``TO_WEIGHTS`` writes them.
            bias: What sums begin with: a number for each channel of ``other``, if that is written. For ``TO_WEIGHTS``
                scratch: with a vector for each weight one tile is read after the other, else one weight is summed up
                after the other; sums have one order.
            tall: Rows of the inputs.
            high: Rows of the outputs.
            adds: Whether what is written is added to what is there; not to weights.
        """
        _passes(kernel, stride, padding, length, which, one, other, weights, bias, tall, high, adds)

    return passes


@compiled
def bias_gradients(gradients, sums, of_bias, cells):  # type: ignore[no-untyped-def]
    """Gradients of a convolution's bias ``[O]``; a channel has so many ``cells``. ``sums`` is scratch, ``[2, L]``."""
    step, lanes = gradients.shape[1], gradients.shape[2]
    for channel in range(of_bias.size):
        _clear(sums)
        for tile in range(gradients.shape[0]):
            at = (tile * step + channel * cells) * lanes
            run("totals", 0, cells, gradients, at, gradients, at, gradients, at, gradients, at, 0, 0, 0, sums)
        of_bias[channel] = lane_sum(sums, 0)


# Normalisation of a batch, with the sum and the ReLU that follow


@compiled
def _blank(maps, first, cells, batch, value):  # type: ignore[no-untyped-def]
    """Give a channel's cells from ``first`` on one value in the lanes that have no image."""
    tiles, lanes = maps.shape[0], maps.shape[2]
    if batch < tiles * lanes:
        for cell in range(first, first + cells):
            for lane in range(batch % lanes, lanes):
                maps[tiles - 1, cell, lane] = value


@compiled
def normalise(  # type: ignore[no-untyped-def]
    maps, beside, outputs, sums, cells, batch, weight, bias, running_mean, running_variance, means, scales,
    momentum, eps, learns, joins, rectifies,
):  # fmt: skip
    """``outputs = maps`` normalised, plus ``beside`` where it ``joins``, its ReLU where it ``rectifies``.

    Two channels pass as a whole, so that they lie in the cache for all three loops over them.

    Args:
        maps: What is normalised; where it ``learns``, lanes without an image (from ``batch`` on) become the mean.
        beside: Of the same shape.
        outputs: Where to write.
        sums: Scratch, ``[2, L]``.
        cells: Pixels of a channel.
        batch: Number of images, all of whose tiles but the last are full.
        weight: One for each channel, as ``torch.nn.BatchNorm2d`` has it; so are the next three.
        bias: See ``weight``.
        running_mean: Changed where it ``learns``, read elsewhere.
        running_variance: See ``running_mean``.
        means: The means that were taken are written here,
        scales: and the inverse standard deviations.
        momentum: Share of the batch in the running values.
        eps: Added to variances.
        learns: Whether the batch is normalised by itself.
        joins: Whether ``beside`` is added.
        rectifies: Whether negative outputs become zero.
    """
    tiles, step, lanes = maps.shape
    count = weight.dtype.type(batch * cells)
    # Of one type with all other values: a call with another one would be compiled again.
    zero, one = weight.dtype.type(0), weight.dtype.type(1)
    variant = (1 if joins else 0) + (2 if rectifies else 0)
    for first in range(0, weight.size, 2):
        second = min(first + 1, weight.size - 1)
        if learns:
            for channel in range(first, second + 1):
                _blank(maps, channel * cells, cells, batch, zero)
            _clear(sums)
            for tile in range(tiles):
                at, other = (tile * step + first * cells) * lanes, (tile * step + second * cells) * lanes
                run("totals", 0, cells, maps, at, maps, other, maps, at, maps, at, 0, 0, 0, sums)
            means[first], means[second] = lane_sum(sums, 0) / count, lane_sum(sums, 1) / count
            for channel in range(first, second + 1):
                # They deviate by nothing.
                _blank(maps, channel * cells, cells, batch, means[channel])
            _clear(sums)
            for tile in range(tiles):
                at, other = (tile * step + first * cells) * lanes, (tile * step + second * cells) * lanes
                one_mean, other_mean = means[first], means[second]
                run("deviations", 0, cells, maps, at, maps, other, maps, at, maps, at, one_mean, other_mean, 0, sums)
            scales[first], scales[second] = lane_sum(sums, 0) / count, lane_sum(sums, 1) / count
        for channel in range(first, second + 1):
            mean, variance = running_mean[channel], running_variance[channel]
            if learns:
                mean, variance = means[channel], scales[channel]
                unbiased = variance * (count / (count - one))
                running_mean[channel] += momentum * (mean - running_mean[channel])
                running_variance[channel] += momentum * (unbiased - running_variance[channel])
            scale = one / np.sqrt(variance + eps)
            means[channel], scales[channel] = mean, scale
            factor = weight[channel] * scale
            shift = bias[channel] - mean * factor
            for tile in range(tiles):
                at = (tile * step + channel * cells) * lanes
                run("affine", variant, cells, maps, at, outputs, at, beside, at, maps, at, factor, shift, 0, sums)


@compiled
def normalise_backward(  # type: ignore[no-untyped-def]
    maps, outputs, gradients, of_maps, of_beside, sums, cells, batch, weight, of_weight, of_bias, means, scales,
    joins, beside_adds, rectifies, adds,
):  # fmt: skip
    """What :func:`normalise` does backward, where it learnt.

    Args:
        maps: What was normalised.
        outputs: What came out.
        gradients: Of the outputs. It may be ``of_maps``, too.
        of_maps: Gradients of ``maps``; zero for lanes without an image.
        of_beside: Gradients of what was added.
        sums: Scratch, ``[2, L]``.
        cells: Pixels of a channel.
        batch: Number of images.
        weight: One for each channel.
        of_weight: Its gradients.
        of_bias: Those of the bias.
        means: As they were taken,
        scales: and the inverse standard deviations.
        joins: Whether something was added.
        beside_adds: Whether its gradients are added to what is there.
        rectifies: Whether a ReLU followed.
        adds: Whether the gradients of ``maps`` are.
    """
    tiles, step, lanes = maps.shape
    count = weight.dtype.type(batch * cells)
    variant = (0 if not joins else 4 if beside_adds else 2) + (1 if rectifies else 0)
    # What goes on to the other map alone has passed the ReLU.
    passed, more = gradients, (2 if adds else 0) + (1 if rectifies else 0)
    if joins and not beside_adds:
        passed, more = of_beside, 2 if adds else 0
    for channel in range(weight.size):
        mean, scale = means[channel], scales[channel]
        _clear(sums)
        for tile in range(tiles):
            at = (tile * step + channel * cells) * lanes
            run("flow", variant, cells, gradients, at, outputs, at, of_beside, at, maps, at, mean, 0, 0, sums)
        total, along = lane_sum(sums, 0), lane_sum(sums, 1)
        of_weight[channel], of_bias[channel] = along * scale, total
        factor = weight[channel] * scale
        slope = -factor * scale * scale * along / count
        level = -factor * total / count - mean * slope
        for tile in range(tiles):
            at = (tile * step + channel * cells) * lanes
            run("ebb", more, cells, passed, at, of_maps, at, maps, at, outputs, at, factor, slope, level, sums)
        _blank(of_maps, channel * cells, cells, batch, weight.dtype.type(0))


# What has no weights


@compiled
def act(kind, variant, one, other, outputs, sums, cells):  # type: ignore[no-untyped-def]
    """What acts on each of the first ``cells`` by itself: see :func:`run`."""
    for tile in range(one.shape[0]):
        lanes = one.shape[2]
        first, second = tile * one.shape[1] * lanes, tile * other.shape[1] * lanes
        goal = tile * outputs.shape[1] * lanes
        if kind == RECTIFY:
            run("rectify", 0, cells, one, first, other, second, outputs, goal, one, first, 0, 0, 0, sums)
        elif kind == RECTIFIED:
            run("rectified", variant, cells, one, first, other, second, outputs, goal, one, first, 0, 0, 0, sums)
        elif kind == SUM:
            run("sum", 0, cells, one, first, other, second, outputs, goal, one, first, 0, 0, 0, sums)
        else:
            run("copy", variant, cells, one, first, other, second, outputs, goal, one, first, 0, 0, 0, sums)


def _pixels(write: Emitter, window: tuple[Any, Any, Whole, Whole, Whole], emit: Callable[[Whole, Any], None]) -> None:
    """Code for each pixel of a window, of a map that lies in an array: its number and its address."""
    kind, array, corner, length, size = window
    with size.each() as row, size.each() as column:
        emit(row * size + column, write.data(kind, array, (corner + (row * length + column) * write.lanes).value))


def _winners(write: Emitter, kind: Any, array: Any, at: Whole) -> tuple[Any, Callable[[Whole], Any]]:
    """Address of a vector of whole numbers, and what makes such a vector of one number."""
    element = write.context.get_value_type(kind.dtype)
    pointer = write.builder.bitcast(write.data(kind, array, at.value), ir.VectorType(element, write.lanes).as_pointer())

    def fill(number: Whole) -> Any:
        return write.fill(write.builder.trunc(number.value, element))

    return pointer, fill


@_written
def _choose(typing, maps, corner, outputs, goal, winner, length, size):  # type: ignore[no-untyped-def]
    """One window of :func:`largest`; places are flat."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write = Emitter(context, builder, maps.dtype)
        start, at, row, many = (Whole(builder, values[number]) for number in (1, 3, 5, 6))
        pointer, fill = _winners(write, winner, values[4], at)
        best = cgutils.alloca_once(builder, write.type)
        where = cgutils.alloca_once(builder, pointer.type.pointee)
        builder.store(write.load(write.data(maps, values[0], start.value), 0), best)
        builder.store(fill(at.like(0)), where)

        def compare(pixel: Whole, address: Any) -> None:
            value, before = write.load(address, 0), builder.load(best)
            # The first of equals wins, and a NaN wins over all.
            wins = builder.or_(builder.fcmp_ordered(">", value, before), builder.fcmp_unordered("uno", value, value))
            builder.store(builder.select(wins, value, before), best)
            builder.store(builder.select(wins, fill(pixel), builder.load(where)), where)

        _pixels(write, (maps, values[0], start, row, many), compare)
        write.store(builder.load(best), write.data(outputs, values[2], at.value), 0)
        builder.store(builder.load(where), pointer, align=winner.dtype.bitwidth // 8)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(maps, whole, outputs, whole, winner, whole, whole), emit


@_written
def _return(typing, gradients, source, winner, of_maps, corner, length, size, adds):  # type: ignore[no-untyped-def]
    """One window of :func:`largest_backward`."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write = Emitter(context, builder, gradients.dtype)
        at, start, row, many = (Whole(builder, values[number]) for number in (1, 4, 5, 6))
        pointer, fill = _winners(write, winner, values[2], at)
        won = builder.load(pointer, align=winner.dtype.bitwidth // 8)
        gradient = write.load(write.data(gradients, values[0], at.value), 0)
        nothing = write.fill(ir.Constant(write.element, 0.0))
        more = builder.trunc(values[7], ir.IntType(1))

        def give(pixel: Whole, address: Any) -> None:
            value = builder.select(builder.icmp_signed("==", won, fill(pixel)), gradient, nothing)
            value = builder.select(more, builder.fadd(value, write.load(address, 0)), value)
            write.store(value, address, 0)

        _pixels(write, (of_maps, values[3], start, row, many), give)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(gradients, whole, winner, of_maps, whole, whole, whole, types.boolean), emit


@compiled
def largest(maps, outputs, winner, channels, tall, length, size):  # type: ignore[no-untyped-def]
    """Largest pixel of each window of ``size`` × ``size``, and which one won, as torch has it."""
    high, reach, lanes = tall // size, length // size, maps.shape[2]
    for tile in range(maps.shape[0]):
        for row in range(channels * high):
            for column in range(reach):
                corner = (tile * maps.shape[1] + row * size * length + column * size) * lanes
                goal = (tile * outputs.shape[1] + row * reach + column) * lanes
                _choose(maps, corner, outputs, goal, winner, length, size)


@compiled
def largest_backward(gradients, winner, of_maps, channels, tall, length, size, adds):  # type: ignore[no-untyped-def]
    """Gradients of what the largest pixels were taken of."""
    high, reach, lanes = tall // size, length // size, gradients.shape[2]
    for tile in range(gradients.shape[0]):
        for row in range(channels * high):
            for column in range(reach):
                corner = (tile * of_maps.shape[1] + row * size * length + column * size) * lanes
                source = (tile * gradients.shape[1] + row * reach + column) * lanes
                _return(gradients, source, winner, of_maps, corner, length, size, adds)
