"""Layers of convolutional networks, forward and backward, compiled for the CPU at first use (Numba).

Maps lie as ``[T, cells, L]``: T tiles of L images, a cell for each channel, row and column of an image (with some to
spare, so that tiles do not compete for the same sets of a cache). Widths and heights are arguments; the length of a
row is compiled in, as a row of sums has to stay in registers: :func:`convolution` makes the passes for a geometry.

Weights lie as torch has them, ``[O, C, K, K]``, and are spread over lanes as they are read. Outside of an image
nothing is computed: on maps of 2×2 pixels that is more than half of a padded 3×3 convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pruneaudit.training.vectors import Emitter, compiled

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


@_written
def correlate(  # type: ignore[no-untyped-def]
    typing,
    is_backward, kernel, stride, padding, of_outputs, of_inputs, block, columns,
    part, outputs, out_at, out_step, rows, inputs, in_at, in_step, channels,
    weights, weight_at, row_step, channel_step, bias, bias_at, first, last, step, adds,
):  # fmt: skip
    """One row of outputs of ``block`` channels, or what one row of inputs gets back from outputs.

    Args:
        typing: Numba's context.
        is_backward: Whether ``outputs`` are gradients of a layer's inputs, and ``inputs`` those of its outputs.
        kernel: Rows and columns of a kernel.
        stride: The convolution's.
        padding: The convolution's.
        of_outputs: Columns of a row of the outputs.
        of_inputs: Columns of a row of the inputs.
        block: Output channels that are computed at once; where fewer are left, the last one is computed again.
        columns: Output columns that are computed at once; divides ``of_outputs``.
        part: Which of them.
        outputs: Where to write; ``out_at`` is the row's place in the first channel, ``out_step`` leads to the next.
        out_at: See ``outputs``.
        out_step: See ``outputs``.
        rows: Output channels that are left.
        inputs: What to read; ``in_at`` is the place of the row that the tap row ``first`` sees in the first channel.
        in_at: See ``inputs``.
        in_step: See ``inputs``.
        channels: Input channels.
        weights: All of the layer's; ``weight_at`` is the place of the first output channel's first kernel.
        weight_at: See ``weights``.
        row_step: From an output channel's weights to the next one's.
        channel_step: From an input channel's weights to the next one's.
        bias: One number for each output channel; ``bias_at`` is that of the first one of this block.
        bias_at: See ``bias``.
        first: First row of the kernel.
        last: Where to stop.
        step: From one row of the kernel to the next: 1, or the stride where ``is_backward``.
        adds: Whether outputs are added to what is there.
    """
    numbers = (is_backward, kernel, stride, padding, of_outputs, of_inputs, block, columns)
    back, taps, jump, border, wide, wide_in, many, some = (number.literal_value for number in numbers)

    def triples(start: int) -> list[tuple[int, int, int]]:
        """Output column within this part, input column, tap."""
        found = []
        for one in range(wide_in if back else wide):
            for tap in range(taps):
                other = one * jump + tap - border
                out, read = (other, one) if back else (one, other)
                if start <= out < start + some and 0 <= read < wide_in:
                    found.append((out - start, read, tap))
        return sorted(found, key=lambda triple: (triple[1], triple[2]))

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write = Emitter(context, builder, outputs.dtype)
        (number, array, out, of_channel, left, source, seen, in_channel, depth, matrix, at) = values[8:19]
        (of_row, of_depth, start, start_at, begin, end, by, more) = values[19:]
        size = ir.Constant(left.type, wide_in * write.lanes)
        tap_row = ir.Constant(left.type, taps)
        one = ir.Constant(left.type, 1)
        lasting = builder.sub(left, one)
        chosen = [
            builder.select(
                builder.icmp_signed("<", ir.Constant(left.type, row), left), ir.Constant(left.type, row), lasting
            )
            for row in range(many)
        ]
        goals = [write.data(outputs, array, builder.add(out, builder.mul(row, of_channel))) for row in chosen]
        fields = [write.data(weights, matrix, builder.add(at, builder.mul(row, of_row))) for row in chosen]
        first_bias = write.data(bias, start, start_at)
        begins = [builder.load(builder.gep(first_bias, [row])) for row in chosen]

        def variant(value: int) -> None:
            sums = [_sums(write, some) for _ in range(many)]
            place = value * some
            for row in range(many):
                for column in range(some):
                    builder.store(write.fill(begins[row]), sums[row][column])
            with builder.if_then(builder.trunc(more, ir.IntType(1))):
                for row in range(many):
                    for column in range(some):
                        given = builder.fadd(write.load(goals[row], place + column), builder.load(sums[row][column]))
                        builder.store(given, sums[row][column])
            wanted = triples(place)
            with cgutils.for_range(builder, depth) as channel:
                plane = builder.add(seen, builder.mul(channel.index, in_channel))
                under = builder.mul(channel.index, of_depth)
                with cgutils.for_range_slice(builder, begin, end, by, left.type) as (tap, count):
                    line = builder.mul(count, size)
                    line = builder.sub(plane, line) if back else builder.add(plane, line)
                    read = write.data(inputs, source, line)
                    offset = builder.add(under, builder.mul(tap, tap_row))
                    sources = [builder.gep(field, [offset]) for field in fields]
                    vectors = {column: write.load(read, column) for column in sorted({triple[1] for triple in wanted})}
                    factors = {
                        (row, which): write.fill(builder.load(write.place(sources[row], which)))
                        for row in range(many)
                        for which in sorted({triple[2] for triple in wanted})
                    }
                    for column, which, factor in wanted:
                        for row in range(many):
                            slot = sums[row][column]
                            total = write.multiply_add(factors[row, factor], vectors[which], builder.load(slot))
                            builder.store(total, slot)
            for row in range(many):
                for column in range(some):
                    write.store(builder.load(sums[row][column]), goals[row], place + column)

        _variants(builder, number, wide // some, variant)
        return context.get_dummy_value()

    places = (types.intp,) * 4
    signature = types.void(
        *numbers,
        types.intp, outputs, types.intp, types.intp, types.intp, inputs, types.intp, types.intp, types.intp,
        weights, *places[:3], bias, *places, types.boolean,
    )  # fmt: skip
    return signature, emit


@_written
def products(  # type: ignore[no-untyped-def]
    typing,
    kernel, stride, padding, of_outputs, of_inputs, block,
    gradients, gradient_at, gradient_step, rows, inputs, in_at, tiles, gradient_tile, in_tile, lines,
    of_weights, weight_at, row_step,
):  # fmt: skip
    """Gradients of one row of the kernels that lead from one input channel to ``block`` output channels.

    Args:
        typing: Numba's context.
        kernel: Rows and columns of a kernel.
        stride: The convolution's.
        padding: The convolution's.
        of_outputs: Columns of a row of the outputs.
        of_inputs: Columns of a row of the inputs.
        block: Output channels at once; where fewer are left, the last one is computed again.
        gradients: Of outputs; ``gradient_at`` is the first row of the first channel that counts, ``gradient_step``
            leads to the next channel, ``gradient_tile`` to the next tile.
        gradient_at: See ``gradients``.
        gradient_step: See ``gradients``.
        rows: Output channels that are left.
        inputs: The layer's; ``in_at`` is the row that the kernel's row sees there, ``in_tile`` leads to the next tile.
        in_at: See ``inputs``.
        tiles: Number of tiles.
        gradient_tile: See ``gradients``.
        in_tile: See ``inputs``.
        lines: Rows of outputs that count.
        of_weights: Where to write; ``weight_at`` is the place of the first number, ``row_step`` leads to the next
            output channel's.
        weight_at: See ``of_weights``.
        row_step: See ``of_weights``.
    """
    numbers = (kernel, stride, padding, of_outputs, of_inputs, block)
    taps, jump, border, wide, wide_in, many = (number.literal_value for number in numbers)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write = Emitter(context, builder, gradients.dtype)
        (array, at, of_channel, left, source, seen, count, of_tile, in_next, height, target, goal, of_row) = values[6:]
        lasting = builder.sub(left, ir.Constant(left.type, 1))
        chosen = [
            builder.select(
                builder.icmp_signed("<", ir.Constant(left.type, row), left), ir.Constant(left.type, row), lasting
            )
            for row in range(many)
        ]
        sums = [_sums(write, taps) for _ in range(many)]
        nothing = write.fill(ir.Constant(write.element, 0.0))
        for row in range(many):
            for tap in range(taps):
                builder.store(nothing, sums[row][tap])
        starts = [builder.add(at, builder.mul(row, of_channel)) for row in chosen]
        with cgutils.for_range(builder, count) as tile:
            ahead, below = builder.mul(tile.index, of_tile), builder.mul(tile.index, in_next)
            with cgutils.for_range(builder, height) as line:
                shift = builder.add(ahead, builder.mul(line.index, ir.Constant(left.type, wide * write.lanes)))
                read = builder.mul(line.index, ir.Constant(left.type, jump * wide_in * write.lanes))
                maps = write.data(inputs, source, builder.add(builder.add(seen, below), read))
                fields = [write.data(gradients, array, builder.add(start, shift)) for start in starts]
                vectors: dict[int, Any] = {}
                for column in range(wide):
                    given = [write.load(field, column) for field in fields]
                    for tap in range(taps):
                        other = column * jump + tap - border
                        if 0 <= other < wide_in:
                            if other not in vectors:
                                vectors[other] = write.load(maps, other)
                            for row in range(many):
                                slot = sums[row][tap]
                                total = write.multiply_add(given[row], vectors[other], builder.load(slot))
                                builder.store(total, slot)
        for row in range(many):
            first = write.data(of_weights, target, builder.add(goal, builder.mul(chosen[row], of_row)))
            for tap in range(taps):
                builder.store(write.sum_of_lanes(builder.load(sums[row][tap])), write.place(first, tap))
        return context.get_dummy_value()

    whole = types.intp
    signature = types.void(
        *numbers, gradients, whole, whole, whole, inputs, whole, whole, whole, whole, whole, of_weights, whole, whole
    )
    return signature, emit


def _flow(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    """Gradients ``a`` of outputs ``b`` through a ReLU, on to ``c``, and their sums alone and along ``d``."""
    gradient = at.a()
    if variant % 2:
        gradient = write.where_positive(at.b(), gradient)
        at.a(gradient)
    if variant >= 2:
        at.c(write.builder.fadd(gradient, at.c()) if variant >= 4 else gradient)
    sums[0](write.builder.fadd(gradient, sums[0]()))
    sums[1](write.multiply_add(gradient, write.builder.fsub(at.d(), scalars[0]), sums[1]()))


def _affine(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    value = write.multiply_add(at.a(), scalars[0], scalars[1])
    value = write.builder.fadd(value, at.c()) if variant % 2 else value
    at.b(write.where_positive(value, value) if variant >= 2 else value)


def _ebb(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    value = write.multiply_add(at.c(), scalars[1], write.multiply_add(at.a(), scalars[0], scalars[2]))
    at.b(write.builder.fadd(value, at.b()) if variant else value)


def _deviation(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    apart = write.builder.fsub(at.a(), scalars[0])
    sums[0](write.multiply_add(apart, apart, sums[0]()))


def _total(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    sums[0](write.builder.fadd(at.a(), sums[0]()))


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
    "total": (1, _total),
    "deviation": (1, _deviation),
    "affine": (4, _affine),
    "flow": (6, _flow),
    "ebb": (2, _ebb),
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


def _at_once(length: int, stride: int) -> int:
    """Columns of a row that are computed together."""
    return max(part for part in range(1, _COLUMNS + 1) if length % part == 0)


@cache
def convolution(kernel: int, stride: int, padding: int, length: int) -> tuple[Any, Any, Any]:
    """A convolution's passes for rows of one length.

    Args:
        kernel: Rows and columns of a kernel.
        stride: Of both directions.
        padding: Of all sides, with zeros.
        length: Columns of the inputs.

    Returns:
        The forward pass, the backward pass to inputs, and that to weights.
    """
    reach = (length + 2 * padding - kernel) // stride + 1
    columns, columns_back = _at_once(reach, 1), _at_once(length, stride)
    block, block_back = max(1, _SUMS // columns), max(1, _SUMS // columns_back)
    block_weights = max(1, min(_SUMS, (_SUMS + 2) // kernel))

    @compiled
    def forward(inputs, weights, bias, outputs, tall, high):  # type: ignore[no-untyped-def]
        """From inputs ``[C, tall, length]`` to outputs ``[O, high, reach]`` in their cells."""
        tiles, lanes = inputs.shape[0], inputs.shape[2]
        out, channels = weights.shape[0], weights.shape[1]
        square = kernel * kernel
        rows = (out + block - 1) // block
        # What is larger is read once: a tile's inputs, or the weights.
        by_row = weights.size > channels * tall * length * lanes
        for number in range(tiles * rows):
            tile = number % tiles if by_row else number // rows
            row = (number // tiles if by_row else number % rows) * block
            for line in range(high):
                # Plain comparisons: each call of another function is compiled into this one anew.
                first = padding - line * stride if line * stride < padding else 0
                last = tall + padding - line * stride
                last = kernel if last > kernel else last
                seen = tile * inputs.shape[1] + (line * stride - padding + first) * length
                goal = tile * outputs.shape[1] + (row * high + line) * reach
                for part in range(reach // columns):
                    correlate(
                        0, kernel, stride, padding, reach, length, block, columns,
                        part, outputs, goal * lanes, high * reach * lanes, out - row,
                        inputs, seen * lanes, tall * length * lanes, channels,
                        weights, row * channels * square, channels * square, square, bias, row,
                        first, last, 1, False,
                    )  # fmt: skip

    @compiled
    def backward(gradients, weights, nothing, of_inputs, tall, high, adds):  # type: ignore[no-untyped-def]
        """From gradients of outputs to those of inputs; ``nothing`` is zeros, as many as there are input channels."""
        tiles, lanes = gradients.shape[0], gradients.shape[2]
        out, channels = weights.shape[0], weights.shape[1]
        square = kernel * kernel
        rows = (channels + block_back - 1) // block_back
        by_row = weights.size > out * high * reach * lanes
        for number in range(tiles * rows):
            tile = number % tiles if by_row else number // rows
            row = (number // tiles if by_row else number % rows) * block_back
            for line in range(tall):
                # The rows of the kernel through which a row of outputs sees this line.
                first, last = (line + padding) % stride, line + padding + 1
                first = line + padding - (high - 1) * stride if line + padding - first >= high * stride else first
                last = kernel if last > kernel else last
                seen = tile * gradients.shape[1] + (line + padding - first) // stride * reach
                goal = tile * of_inputs.shape[1] + (row * tall + line) * length
                for part in range(length // columns_back):
                    correlate(
                        1, kernel, stride, padding, length, reach, block_back, columns_back,
                        part, of_inputs, goal * lanes, tall * length * lanes, channels - row,
                        gradients, seen * lanes, high * reach * lanes, out,
                        weights, row * square, square, channels * square, nothing, row,
                        first, last, stride, adds,
                    )  # fmt: skip

    @compiled
    def backward_weights(inputs, gradients, of_weights, tall, high):  # type: ignore[no-untyped-def]
        """From gradients of outputs and from inputs to gradients of weights."""
        tiles, lanes = inputs.shape[0], inputs.shape[2]
        out, channels = of_weights.shape[0], of_weights.shape[1]
        square = kernel * kernel
        for row in range(0, out, block_weights):
            for channel in range(channels):
                for tap in range(kernel):
                    # Outputs that see an input through this row of the kernel.
                    first = (padding - tap + stride - 1) // stride if tap < padding else 0
                    lines = (tall - 1 + padding - tap) // stride + 1
                    lines = (high if lines > high else lines) - first
                    seen = (channel * tall + first * stride + tap - padding) * length
                    products(
                        kernel, stride, padding, reach, length, block_weights,
                        gradients, (row * high + first) * reach * lanes, high * reach * lanes, out - row,
                        inputs, seen * lanes, tiles, gradients.shape[1] * lanes, inputs.shape[1] * lanes, lines,
                        of_weights, (row * channels + channel) * square + tap * kernel, channels * square,
                    )  # fmt: skip

    return forward, backward, backward_weights


@compiled
def bias_gradients(gradients, sums, of_bias, cells):  # type: ignore[no-untyped-def]
    """Gradients of a convolution's bias ``[O]``; a channel has so many ``cells``. ``sums`` is scratch, ``[2, L]``."""
    step, lanes = gradients.shape[1], gradients.shape[2]
    for channel in range(of_bias.size):
        _clear(sums)
        for tile in range(gradients.shape[0]):
            at = (tile * step + channel * cells) * lanes
            run("total", 0, cells, gradients, at, gradients, at, gradients, at, gradients, at, 0, 0, 0, sums)
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

    A channel passes as a whole, so that it lies in the cache for all three loops over it.

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
    one = weight.dtype.type(1)
    variant = (1 if joins else 0) + (2 if rectifies else 0)
    for channel in range(weight.size):
        mean, variance = running_mean[channel], running_variance[channel]
        if learns:
            _blank(maps, channel * cells, cells, batch, 0)
            _clear(sums)
            for tile in range(tiles):
                at = (tile * step + channel * cells) * lanes
                run("total", 0, cells, maps, at, maps, at, maps, at, maps, at, 0, 0, 0, sums)
            mean = lane_sum(sums, 0) / count
            # They deviate by nothing.
            _blank(maps, channel * cells, cells, batch, mean)
            _clear(sums)
            for tile in range(tiles):
                at = (tile * step + channel * cells) * lanes
                run("deviation", 0, cells, maps, at, maps, at, maps, at, maps, at, mean, 0, 0, sums)
            variance = lane_sum(sums, 0) / count
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
        gradients: Of the outputs; those of what came before the ReLU afterwards. It may be ``of_maps``, too.
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
        more = 1 if adds else 0
        for tile in range(tiles):
            at = (tile * step + channel * cells) * lanes
            run("ebb", more, cells, gradients, at, of_maps, at, maps, at, maps, at, factor, slope, level, sums)
        _blank(of_maps, channel * cells, cells, batch, 0)


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


@compiled
def largest(maps, outputs, winner, channels, tall, length, size):  # type: ignore[no-untyped-def]
    """Largest pixel of each window of ``size`` × ``size``, and which one won, as torch has it."""
    high, reach = tall // size, length // size
    for tile in range(maps.shape[0]):
        for channel in range(channels):
            for row in range(high):
                for column in range(reach):
                    goal = (channel * high + row) * reach + column
                    corner = (channel * tall + row * size) * length + column * size
                    for lane in range(maps.shape[2]):
                        outputs[tile, goal, lane] = maps[tile, corner, lane]
                        winner[tile, goal, lane] = 0
                    for pixel in range(1, size * size):
                        source = corner + pixel // size * length + pixel % size
                        for lane in range(maps.shape[2]):
                            value = maps[tile, source, lane]
                            # The first of equals wins, and a NaN wins over all.
                            wins = value > outputs[tile, goal, lane] or value != value
                            outputs[tile, goal, lane] = value if wins else outputs[tile, goal, lane]
                            winner[tile, goal, lane] = pixel if wins else winner[tile, goal, lane]


@compiled
def largest_backward(gradients, winner, of_maps, channels, tall, length, size, adds):  # type: ignore[no-untyped-def]
    """Gradients of what the largest pixels were taken of."""
    high, reach = tall // size, length // size
    for tile in range(gradients.shape[0]):
        for channel in range(channels):
            for row in range(tall):
                for column in range(length):
                    goal = (channel * tall + row) * length + column
                    source = (channel * high + row // size) * reach + column // size
                    pixel = row % size * size + column % size
                    for lane in range(gradients.shape[2]):
                        value = gradients[tile, source, lane] if winner[tile, source, lane] == pixel else 0
                        of_maps[tile, goal, lane] = value + of_maps[tile, goal, lane] if adds else value
