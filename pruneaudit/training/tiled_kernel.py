"""Layers of convolutional networks, forward and backward, written for the CPU in LLVM's instructions (llvmlite).

Maps lie as ``[T, cells, L]``: T tiles of L images, a cell for each channel, row and column of an image (with some to
spare, so that tiles do not compete for the same sets of a cache). Widths and heights are arguments; the length of a
row is compiled in, as a row of sums has to stay in registers: :func:`convolution` makes the passes for a geometry.

Weights lie as torch has them, ``[O, C, K, K]``, and are spread over lanes as they are read. Outside of an image
nothing is computed: on maps of 2×2 pixels that is more than half of a padded 3×3 convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]

from pruneaudit.kernels.machine import Call, Written
from pruneaudit.kernels.vectors import VECTOR_BYTES, Emitter, Real, Whole

#: Sums that are kept in registers, of sixteen: some are needed for what is multiplied.
_SUMS = 8
#: Columns of a row that are computed at once, at most; half as many of two channels. AVX-512 has 32 registers.
_COLUMNS = 14 if VECTOR_BYTES == 64 else 10


# Two loops in LLVM's vectors


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


def _rows(left: Whole, count: int) -> list[Whole]:
    """Numbers of the next ``count`` rows; where fewer are ``left``, the last one stands for what is missing."""
    return [left.like(row).at_most(left - 1) for row in range(count)]


@dataclass(frozen=True)
class _Rows:
    """Rows of a map's channels: of all channels the one that lies at the same place.

    Attributes:
        array: The map.
        at: Place of the row in the first channel that counts.
        step: From there to the next channel's.
        wide: Columns of a row.
    """

    array: Any
    at: Whole
    step: Whole
    wide: int


@dataclass(frozen=True)
class _Weights:
    """A layer's weights from a block of rows on.

    Attributes:
        array: All of the layer's.
        at: Place of the block's first number.
        row_step: From one row of the block to the next.
        channel_step: From a channel that is summed over to the next.
    """

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

    goals = [write.at(outputs.array, outputs.at + row * outputs.step) for row in rows]
    fields = [write.at(weights.array, weights.at + row * weights.row_step) for row in rows]
    size, many = inputs.wide * write.lanes, range(len(rows))

    def variant(value: int) -> None:
        sums = [write.slots(some) for _ in many]
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
            read = write.at(inputs.array, seen - line if is_backward else seen + line)
            offset = channel * weights.channel_step + tap * shape.kernel
            sources = [write.at(field, offset) for field in fields]
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
    sums = {(row, channel): write.slots(shape.kernel) for row in rows for channel in channels}
    places = {
        (row, channel): weights.at + row * weights.row_step + channel * weights.channel_step for row, channel in sums
    }
    with builder.if_else(kept.begins) as (begins, goes_on):
        with begins:
            for slots in sums.values():
                write.clear(slots)
        with goes_on:
            for number, slots in sums.items():
                before = write.at(kept.sums, places[number] * write.lanes)
                for tap, slot in enumerate(slots):
                    builder.store(write.load(before, tap), slot)
    with tiles[1].each() as count, lines.each() as line:
        tile = tiles[0] + count
        shift = gradients.at + tile * tile_steps[0] + line * (gradients.wide * write.lanes)
        read = inputs.at + tile * tile_steps[1] + line * (shape.stride * inputs.wide * write.lanes)
        fields = {row: write.at(gradients.array, shift + row * gradients.step) for row in rows}
        maps = {channel: write.at(inputs.array, read + channel * inputs.step) for channel in channels}
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
                first = write.at(weights.array, places[number])
                for tap, slot in enumerate(slots):
                    builder.store(write.sum_of_lanes(builder.load(slot)), write.place(first, tap))
        with goes_on:
            for number, slots in sums.items():
                after = write.at(kept.sums, places[number] * write.lanes)
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
    # Several at once: a sum alone waits for itself.
    for values, total in zip((at.a, at.b, at.c, at.d), sums, strict=False):
        total(write.builder.fadd(values(), total()))


def _rectify(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    at.c(write.where_positive(at.a(), at.a()))


def _rectified(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    value = write.where_positive(at.b(), at.a())
    at.c(write.builder.fadd(value, at.c()) if variant else value)


def _sum(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    at.c(write.builder.fadd(at.a(), at.b()))


def _copy(write: Emitter, variant: int, at: Any, scalars: Any, sums: Any) -> None:
    at.c(write.builder.fadd(at.a(), at.c()) if variant else at.a())


class _Access:
    """Reads a vector where it is called with nothing, and writes what it is called with."""

    def __init__(self, write: Emitter, pointer: Any) -> None:
        self._write, self._pointer = write, pointer

    def __call__(self, value: Any = None) -> Any:
        if value is None:
            return self._write.load(self._pointer, 0)
        return self._write.store(value, self._pointer, 0)


class _Slot:
    """Reads and writes a register as :class:`_Access` does memory."""

    def __init__(self, builder: Any, slot: Any) -> None:
        self._builder, self._slot = builder, slot

    def __call__(self, value: Any = None) -> Any:
        return self._builder.load(self._slot) if value is None else self._builder.store(value, self._slot)


class _Place:
    """The vectors a, b, c, d at one place of as many runs."""

    def __init__(self, write: Emitter, pointers: list[Any]) -> None:
        self.a, self.b, self.c, self.d = (_Access(write, pointer) for pointer in pointers)


def _run(
    write: Emitter, body: Any, variant: Whole | int, variants: int, count: Whole, starts: list[Any],
    scalars: list[Real] | None = None, sums: list[Any] | None = None,
) -> None:  # fmt: skip
    """A loop over vectors that lie one after the other.

    Args:
        write: Where to.
        body: What is done with the vectors that lie at the same place of four runs.
        variant: Which of its variants.
        variants: How many it has.
        count: Vectors of a run.
        starts: Addresses of the runs, at most four.
        scalars: Numbers for all lanes.
        sums: Vectors to which sums are added, at most four.
    """
    many = [write.fill(scalar.value) for scalar in scalars or []]
    slots = [_Slot(write.builder, slot) for slot in sums or []]

    def emit(number: int) -> None:
        with count.each() as index:
            places = [write.at(start, index * write.lanes) for start in starts]
            body(write, number, _Place(write, places + places[:1] * (4 - len(places))), many, slots)

    if isinstance(variant, int):
        emit(variant)
    else:
        _variants(write.builder, variant.value, variants, emit)


def _lane_sum(write: Emitter, slot: Any) -> Real:
    """All lanes of a vector in one number."""
    return Real(write.builder, write.sum_of_lanes(write.builder.load(slot)))


# Convolutions

#: What :func:`convolution`'s function does.
FORWARD, TO_INPUTS, TO_WEIGHTS = range(3)
#: Parts of a batch over which gradients of weights are summed.
FIRST, LAST = 1, 2


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


def _pass(which: int, shape: _Geometry) -> Callable[..., None]:
    """What writes one of a convolution's passes, see :func:`convolution`."""

    def emit(
        write: Emitter, one: Any, other: Any, weights: Any, bias: Any, tiles: Whole, cells: Whole, other_cells: Whole,
        out: Whole, channels: Whole, scratch: Whole, rows_in: Whole, rows_out: Whole, how: Whole,
    ) -> None:  # fmt: skip
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
                begins = [write.get(bias, first_row + row).value for row in rows]
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
                            write, is_backward, shape, some, part, _Rows(other, goal, plane, wide), rows,
                            _Rows(one, read, plane_read, wide_in), sources,
                            _Weights(weights, first_row * steps[0], *steps), begins, (begin, end, step),
                            how.bit().value,
                        )  # fmt: skip

        def weight_gradients() -> None:
            block = max(1, min(_SUMS, (_SUMS + 2) // shape.kernel))
            by_tile = scratch >= out * channels * (square * lanes)
            parts, many = by_tile.choose(tiles, tiles.like(1)), by_tile.choose(tiles.like(1), tiles)
            with parts.each() as number:
                begins = write.builder.and_((number < 1).value, (how % 2).bit().value)
                ends = write.builder.and_((number > parts - 2).value, (how > 1).value)
                some_gradients(block, (number * many, many), _Kept(bias, begins, ends))

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
                    write, shape, _Rows(other, given, plane_out, shape.reach), rows,
                    _Rows(one, seen, plane_in, shape.length), among, some, (other_cells * lanes, cells * lanes),
                    lines, _Weights(weights, at, channels * square, square), kept,
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

        if which == TO_WEIGHTS:
            weight_gradients()
        else:
            correlation(is_backward=which == TO_INPUTS)

    return emit


@cache
def _compiled_pass(which: int, *geometry: int) -> Written:
    shape = _Geometry(*geometry)
    name = f"convolution-{('forward', 'to-inputs', 'to-weights')[which]}-" + "-".join(map(str, geometry))
    return Written(name, "reals reals reals reals" + 9 * " whole", _pass(which, shape))


def convolution(
    geometry: tuple[int, int, int, int], which: int, one: np.ndarray, other: np.ndarray, weights: np.ndarray,
    bias: np.ndarray, tall: int, high: int, adds: bool, part: int = FIRST + LAST,
) -> Call:  # fmt: skip
    """One of a convolution's passes between maps ``[C, tall, length]`` of inputs and ``[O, high, reach]`` of outputs.

    Each pass is compiled once for rows of one length.

    Args:
        geometry: Rows and columns of a kernel; stride of both directions; padding of all sides, with zeros; columns of
            the inputs.
        which: ``FORWARD`` from inputs to outputs, ``TO_INPUTS`` from gradients of outputs to those of inputs, or
            ``TO_WEIGHTS`` from inputs and gradients of outputs to those of weights.
        one: What is read, ``[T, cells, L]``.
        other: What is written; ``TO_WEIGHTS`` reads gradients of outputs there.
        weights: ``[O, C, K, K]``; ``TO_WEIGHTS`` writes them.
        bias: What sums begin with: a number for each channel of ``other``, if that is written. For ``TO_WEIGHTS``
            scratch: with a vector for each weight one tile is read after the other, and a batch may come in parts;
            else one weight is summed up after the other. Sums have one order.
        tall: Rows of the inputs.
        high: Rows of the outputs.
        adds: Whether what is written is added to what is there; not to weights.
        part: Which part of a batch it is, for ``TO_WEIGHTS``: :data:`FIRST` and :data:`LAST` added.
    """
    how = part if which == TO_WEIGHTS else adds
    sizes = (len(one), one.shape[1], other.shape[1], *weights.shape[:2], bias.size, tall, high, how)
    return _compiled_pass(which, *geometry)(one, other, weights, bias, *sizes)


def _write_bias_gradients(
    write: Emitter, gradients: Any, of_bias: Any, kept: Any, tiles: Whole, step: Whole, channels: Whole, cells: Whole,
    part: Whole,
) -> None:  # fmt: skip
    # Four at once: a sum alone waits for itself.
    slots, begins, ends = write.slots(4), (part % 2).bit(), (part > 1).value

    with ((channels + 3) // 4).each() as group:
        many = _rows(channels - group * 4, 4)
        places = [group * 4 + number for number in many]
        for slot, place in zip(slots, places, strict=True):
            before = write.load(write.at(kept, place * write.lanes), 0)
            nothing = ir.Constant(write.type, [0.0] * write.lanes)
            write.builder.store(write.builder.select(begins.value, nothing, before), slot)
        with tiles.each() as tile:
            starts = [write.at(gradients, (tile * step + place * cells) * write.lanes) for place in places]
            _run(write, _totals, 0, 1, cells, starts, sums=slots)
        for slot, place in zip(slots, places, strict=True):
            write.store(write.builder.load(slot), write.at(kept, place * write.lanes), 0)
        with write.builder.if_then(ends):
            for slot, place in zip(slots, places, strict=True):
                write.put(_lane_sum(write, slot), of_bias, place)


_bias_gradients = Written("bias-gradients", "reals reals reals" + 5 * " whole", _write_bias_gradients)


def bias_gradients(gradients: np.ndarray, of_bias: np.ndarray, kept: np.ndarray, cells: int, part: int) -> Call:
    """Gradients of a convolution's bias ``[O]``.

    Args:
        gradients: Of the convolution's outputs, ``[T, cells, L]``.
        of_bias: Where to write.
        kept: A vector for each bias, from one part of a batch to the next.
        cells: Of a channel.
        part: Which part of a batch it is, :data:`FIRST` and :data:`LAST` added.
    """
    return _bias_gradients(gradients, of_bias, kept, *gradients.shape[:2], of_bias.size, cells, part)


# Normalisation of a batch, with the sum and the ReLU that follow


@dataclass(frozen=True)
class _Normalised:
    """Sizes of a map that is normalised.

    Attributes:
        write: Where instructions go.
        tiles: Tiles of a batch.
        step: Cells of a tile.
        cells: Pixels of a channel.
        batch: Images.
    """

    write: Emitter
    tiles: Whole
    step: Whole
    cells: Whole
    batch: Whole

    def start(self, array: Any, tile: Whole, channel: Whole) -> Any:
        """Address of a channel."""
        return self.write.at(array, (tile * self.step + channel * self.cells) * self.write.lanes)

    def blank(self, maps: Any, channel: Whole, value: Real) -> None:
        """Give a channel one value in the lanes that have no image."""
        lanes = self.write.lanes
        beyond = self.batch % lanes
        with (self.batch < self.tiles * lanes).where():
            first = self.start(maps, self.tiles - 1, channel)
            with self.cells.each() as cell, beyond.up_to(beyond.like(lanes), 1) as (lane, _):
                self.write.put(value, first, cell * lanes + lane)


def _write_normalise(
    write: Emitter, maps: Any, beside: Any, outputs: Any, weight: Any, bias: Any, running_mean: Any,
    running_variance: Any, means: Any, scales: Any, tiles: Whole, step: Whole, cells: Whole, batch: Whole,
    channels: Whole, momentum: Any, eps: Any, learns: Whole, joins: Whole, rectifies: Whole,
) -> None:  # fmt: skip
    size = _Normalised(write, tiles, step, cells, batch)
    count, zero, one = (write.real(number) for number in (batch * cells, 0, 1))
    share, least = write.real(momentum), write.real(eps)
    sums, learning = write.slots(2), learns.bit()
    mean_slot, variance_slot = (write.number_slot() for _ in range(2))
    with ((channels + 1) // 2).each() as pair:
        first = pair * 2
        second = (first + 1).at_most(channels - 1)
        with learning.where():

            def both(body: Any, numbers: list[Real], goal: Any) -> None:
                """Sums of two channels over the batch, divided by its size."""
                write.clear(sums)
                with tiles.each() as tile:
                    starts = [size.start(maps, tile, channel) for channel in (first, second)]
                    _run(write, body, 0, 1, cells, starts, numbers, sums)
                for channel, slot in zip((first, second), sums, strict=True):
                    write.put(_lane_sum(write, slot) / count, goal, channel)

            with first.up_to(second + 1, 1) as (channel, _):
                size.blank(maps, channel, zero)
            both(_totals, [], means)
            with first.up_to(second + 1, 1) as (channel, _):
                # They deviate by nothing.
                size.blank(maps, channel, write.get(means, channel))
            both(_deviations, [write.get(means, first), write.get(means, second)], scales)
        with first.up_to(second + 1, 1) as (channel, _):
            before, spread = write.get(running_mean, channel), write.get(running_variance, channel)
            mean_slot(before)
            variance_slot(spread)
            with learning.where():
                mean, variance = write.get(means, channel), write.get(scales, channel)
                mean_slot(mean)
                variance_slot(variance)
                unbiased = variance * (count / (count - one))
                write.put(before + share * (mean - before), running_mean, channel)
                write.put(spread + share * (unbiased - spread), running_variance, channel)
            mean = mean_slot()
            scale = one / (variance_slot() + least).function("sqrt")
            write.put(mean, means, channel)
            write.put(scale, scales, channel)
            factor = write.get(weight, channel) * scale
            shift = write.get(bias, channel) - mean * factor
            with tiles.each() as tile:
                starts = [size.start(array, tile, channel) for array in (maps, outputs, beside)]
                _run(write, _affine, joins + rectifies * 2, 4, cells, starts, [factor, shift])


_normalise = Written(
    "normalise", 9 * "reals " + 5 * "whole " + "real real whole whole whole", _write_normalise
)  # fmt: skip


def normalise(
    maps: np.ndarray, beside: np.ndarray, outputs: np.ndarray, cells: int, batch: int, weight: np.ndarray,
    bias: np.ndarray, running_mean: np.ndarray, running_variance: np.ndarray, means: np.ndarray, scales: np.ndarray,
    momentum: float, eps: float, learns: bool, joins: bool, rectifies: bool,
) -> Call:  # fmt: skip
    """``outputs = maps`` normalised, plus ``beside`` where it ``joins``, its ReLU where it ``rectifies``.

    Two channels pass as a whole, so that they lie in the cache for all three loops over them.

    Args:
        maps: What is normalised, ``[T, cells, L]``; where it ``learns``, lanes without an image (from ``batch`` on)
            become the mean.
        beside: Of the same shape.
        outputs: Where to write.
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
    return _normalise(
        maps, beside, outputs, weight, bias, running_mean, running_variance, means, scales,
        *maps.shape[:2], cells, batch, weight.size, momentum, eps, learns, joins, rectifies,
    )  # fmt: skip


def _write_normalise_backward(
    write: Emitter, maps: Any, outputs: Any, gradients: Any, of_maps: Any, of_beside: Any, weight: Any, of_weight: Any,
    of_bias: Any, means: Any, scales: Any, passed: Any, tiles: Whole, step: Whole, cells: Whole, batch: Whole,
    channels: Whole, flow: Whole, ebb: Whole,
) -> None:  # fmt: skip
    size = _Normalised(write, tiles, step, cells, batch)
    count, sums = write.real(batch * cells), write.slots(2)
    with channels.each() as channel:
        mean, scale = write.get(means, channel), write.get(scales, channel)
        write.clear(sums)
        with tiles.each() as tile:
            starts = [size.start(array, tile, channel) for array in (gradients, outputs, of_beside, maps)]
            _run(write, _flow, flow, 6, cells, starts, [mean], sums)
        total, along = (_lane_sum(write, slot) for slot in sums)
        write.put(along * scale, of_weight, channel)
        write.put(total, of_bias, channel)
        factor = write.get(weight, channel) * scale
        slope = -factor * scale * scale * along / count
        level = -factor * total / count - mean * slope
        with tiles.each() as tile:
            starts = [size.start(array, tile, channel) for array in (passed, of_maps, maps, outputs)]
            _run(write, _ebb, ebb, 4, cells, starts, [factor, slope, level])
        size.blank(of_maps, channel, write.real(0))


_normalise_backward = Written("normalise-backward", 11 * "reals " + 7 * "whole ", _write_normalise_backward)


def normalise_backward(
    maps: np.ndarray, outputs: np.ndarray, gradients: np.ndarray, of_maps: np.ndarray, of_beside: np.ndarray,
    cells: int, batch: int, weight: np.ndarray, of_weight: np.ndarray, of_bias: np.ndarray, means: np.ndarray,
    scales: np.ndarray, joins: bool, beside_adds: bool, rectifies: bool, adds: bool,
) -> Call:  # fmt: skip
    """What :func:`normalise` does backward, where it learnt.

    Args:
        maps: What was normalised.
        outputs: What came out.
        gradients: Of the outputs. It may be ``of_maps``, too.
        of_maps: Gradients of ``maps``; zero for lanes without an image.
        of_beside: Gradients of what was added.
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
    flow = (0 if not joins else 4 if beside_adds else 2) + rectifies
    # What goes on to the other map alone has passed the ReLU.
    passed, ebb = (of_beside, 2 * adds) if joins and not beside_adds else (gradients, 2 * adds + rectifies)
    return _normalise_backward(
        maps, outputs, gradients, of_maps, of_beside, weight, of_weight, of_bias, means, scales, passed,
        *maps.shape[:2], cells, batch, weight.size, flow, ebb,
    )  # fmt: skip


# What has no weights


#: What acts on each cell by itself: on vectors a and b, into c.
_ACTS = {"rectify": _rectify, "rectified": _rectified, "sum": _sum, "copy": _copy}


@cache
def _acting(kind: str, adds: bool) -> Written:
    def emit(
        write: Emitter, one: Any, other: Any, outputs: Any, tiles: Whole, step: Whole, other_step: Whole, goal: Whole,
        cells: Whole,
    ) -> None:  # fmt: skip
        with tiles.each() as tile:
            steps = ((one, step), (other, other_step), (outputs, goal))
            starts = [write.at(array, tile * cells_of * write.lanes) for array, cells_of in steps]
            _run(write, _ACTS[kind], int(adds), 1, cells, starts)

    return Written(f"{kind}-{'added' if adds else 'alone'}", 3 * "reals " + 5 * "whole ", emit)


def act(kind: str, one: np.ndarray, other: np.ndarray, outputs: np.ndarray, cells: int, adds: bool = False) -> Call:
    """What acts on each of the first ``cells`` by itself, of maps ``[T, cells, L]``.

    Args:
        kind: ``rectify``: the ReLU of ``one``; ``rectified``: the gradients ``one`` of outputs ``other`` through it;
            ``sum`` of both; ``copy`` of ``one``.
        one: What is read.
        other: See ``one``.
        outputs: What is written.
        cells: Of each tile.
        adds: Whether it is added to what is there: of ``rectified`` and ``copy``.
    """
    return _acting(kind, adds)(one, other, outputs, len(one), one.shape[1], other.shape[1], outputs.shape[1], cells)


@dataclass(frozen=True)
class _Windows:
    """Windows of ``size`` × ``size`` pixels, side by side.

    Attributes:
        write: Where instructions go.
        size: Of a window: it is compiled in.
        tiles: Tiles of a batch.
        step: Cells of a tile of the maps.
        goal: Cells of a tile of what they become.
        lines: Rows of windows, of all channels.
        reach: Windows of a row.
        length: Columns of the maps.
    """

    write: Emitter
    size: int
    tiles: Whole
    step: Whole
    goal: Whole
    lines: Whole
    reach: Whole
    length: Whole

    def each(self, emit: Callable[[Whole, Whole], None]) -> None:
        """Code for each window: where its upper left corner lies, and where what it becomes."""
        lanes = self.write.lanes
        with self.tiles.each() as tile, self.lines.each() as row, self.reach.each() as column:
            corner = (tile * self.step + row * self.size * self.length + column * self.size) * lanes
            at = (tile * self.goal + row * self.reach + column) * lanes
            emit(corner, at)

    def pixels(self, maps: Any, corner: Whole) -> Iterator[tuple[int, Any]]:
        """Number and address of each pixel of a window of a map."""
        for row, column in itertools.product(range(self.size), repeat=2):
            place = corner + (self.length * row + column) * self.write.lanes
            yield row * self.size + column, self.write.at(maps, place)


def _winners(write: Emitter, array: Any, at: Whole) -> tuple[Any, Callable[[int], Any]]:
    """Address of a vector of whole numbers, and what makes such a vector of one number."""
    element = ir.IntType(16)
    pointer = write.builder.bitcast(write.at(array, at), ir.VectorType(element, write.lanes).as_pointer())

    def fill(number: int) -> Any:
        return ir.Constant(ir.VectorType(element, write.lanes), [number] * write.lanes)

    return pointer, fill


@cache
def _largest(size: int) -> Written:
    def emit(write: Emitter, maps: Any, outputs: Any, winner: Any, *sizes: Whole) -> None:
        builder, windows = write.builder, _Windows(write, size, *sizes)

        def choose(corner: Whole, at: Whole) -> None:
            pointer, fill = _winners(write, winner, at)
            best, where = None, fill(0)
            for pixel, address in windows.pixels(maps, corner):
                value = write.load(address, 0)
                if best is None:
                    best = value
                    continue
                # The first of equals wins, and a NaN wins over all.
                is_nan = builder.fcmp_unordered("uno", value, value)
                wins = builder.or_(builder.fcmp_ordered(">", value, best), is_nan)
                best = builder.select(wins, value, best)
                where = builder.select(wins, fill(pixel), where)
            write.store(best, write.at(outputs, at), 0)
            builder.store(where, pointer, align=2)

        windows.each(choose)

    return Written(f"largest-{size}", "reals reals winners" + 6 * " whole", emit)


def _windows(maps: np.ndarray, pooled: np.ndarray, channels: int, tall: int, length: int, size: int) -> tuple[int, ...]:
    """What :class:`_Windows` is told of maps and of what they become."""
    return len(maps), maps.shape[1], pooled.shape[1], channels * (tall // size), length // size, length


def largest(
    maps: np.ndarray, outputs: np.ndarray, winner: np.ndarray, channels: int, tall: int, length: int, size: int
) -> Call:
    """Largest pixel of each window of ``size`` × ``size``, and which one won, as torch has it."""
    sizes = _windows(maps, outputs, channels, tall, length, size)
    return _largest(size)(maps, outputs, winner, *sizes)


@cache
def _largest_backward(size: int, adds: bool) -> Written:
    def emit(write: Emitter, gradients: Any, of_maps: Any, winner: Any, *sizes: Whole) -> None:
        builder, windows = write.builder, _Windows(write, size, *sizes)
        nothing = ir.Constant(write.type, [0.0] * write.lanes)

        def hand_on(corner: Whole, at: Whole) -> None:
            pointer, fill = _winners(write, winner, at)
            won, gradient = builder.load(pointer, align=2), write.load(write.at(gradients, at), 0)
            for pixel, address in windows.pixels(of_maps, corner):
                value = builder.select(builder.icmp_signed("==", won, fill(pixel)), gradient, nothing)
                write.store(builder.fadd(value, write.load(address, 0)) if adds else value, address, 0)

        windows.each(hand_on)

    how = "added" if adds else "alone"
    return Written(f"largest-backward-{size}-{how}", "reals reals winners" + 6 * " whole", emit)


def largest_backward(
    gradients: np.ndarray, winner: np.ndarray, of_maps: np.ndarray, channels: int, tall: int, length: int, size: int,
    adds: bool,
) -> Call:  # fmt: skip
    """Gradients of what the largest pixels were taken of."""
    sizes = _windows(of_maps, gradients, channels, tall, length, size)
    return _largest_backward(size, adds)(gradients, of_maps, winner, *sizes)
