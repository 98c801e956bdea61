"""LeNet-5's convolutions, forward and backward, compiled for the CPU at first use (Numba).

The activations of a tile of images lie as ``[channels, rows, columns, lanes]``, see :mod:`.vectors`. Numba neither
unrolls a row of outputs nor keeps it in registers, so the three loops that take nearly all the time are written in
LLVM's vectors (:func:`correlate`, :func:`spread`, :func:`products`).

Importing this module needs Numba; :mod:`pruneaudit.training.compiled` says what to do where it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from pruneaudit.training.vectors import CONTRACT, Emitter, lanes

TAPS = 5


def compiled(function: Callable[..., Any]) -> Any:
    """Compile once and keep the machine code: in the package, else in the user's cache, else for this process only."""
    options: dict[str, Any] = {"fastmath": {*CONTRACT}, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither folder can be written, and NUMBA_CACHE_DIR names none.
        return njit(**options)(function)


def _writing_in(context: Any, builder: Any, dtype: types.Float) -> tuple[Emitter, Callable[..., Any]]:
    """What writes instructions on vectors, and what finds a place of one of Numba's arrays, counted as if flat."""
    write = Emitter(builder, dtype.bitwidth // 8)

    def data(kind: types.Array, array: ir.Value, at: ir.Value) -> ir.Value:
        return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, array).data, [at])

    return write, data


# Rows of vectors


class Sums(types.Opaque):
    """A row of vectors that LLVM keeps in registers: its length and its places are constants."""

    def __init__(self, dtype: types.Float, count: int) -> None:
        self.dtype = dtype
        self.count = count
        super().__init__(f"Sums({dtype}, {count})")

    @property
    def key(self) -> tuple[types.Float, int]:
        """What tells two types apart."""
        return self.dtype, self.count


@register_model(Sums)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Sums) -> None:
        element = ir.FloatType() if kind.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, kind, ir.VectorType(element, lanes(kind.dtype.bitwidth // 8)).as_pointer())


def _sums_of(typing: Any, count: Any, like: Any, start: Any) -> Any:
    """``count`` vectors of the type of the array ``like``, all lanes ``start``."""
    kind = Sums(like.dtype, count.literal_value)

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write, _ = _writing_in(context, builder, like.dtype)
        sums = cgutils.alloca_once(builder, write.type, size=ir.Constant(ir.IntType(64), kind.count))
        first = write.fill(context.cast(builder, values[2], signature.args[2], like.dtype))
        for number in range(kind.count):
            builder.store(first, write.place(sums, number))
        return sums

    return kind(count, like, start), emit


sums_of: Any = intrinsic(prefer_literal=True)(_sums_of)


def _accumulation(body: Callable[[Emitter, list[Any], Any, Any, int], None]) -> Any:
    """An operation that adds to sums what ``body`` makes of two arrays from two flat places on, over ``count``."""

    @intrinsic(prefer_literal=True)
    def operation(typing: Any, sums: Any, count: Any, one: Any, at: Any, other: Any, start: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            write, data = _writing_in(context, builder, sums.dtype)
            slots = [write.place(values[0], number) for number in range(sums.count)]
            row = [builder.load(slot) for slot in slots]
            first, second = data(one, *values[2:4]), data(other, *values[4:6])
            body(write, row, first, second, count.literal_value)
            for slot, value in zip(slots, row, strict=True):
                builder.store(value, slot)
            return context.get_dummy_value()

        return types.void(sums, count, one, types.intp, other, types.intp), emit

    return operation


def _taps(write: Emitter, weights: Any) -> list[Any]:
    """The weights of one row of a kernel."""
    return [write.fill(write.builder.load(write.place(weights, tap))) for tap in range(TAPS)]


def _correlate(write: Emitter, row: list[Any], inputs: Any, weights: Any, count: int) -> None:
    """``row[k] += Σ_j weights[j] inputs[k + j]``: a row of outputs and one row of the kernel."""
    taps = _taps(write, weights)
    for number in range(count + TAPS - 1):
        value = write.load(inputs, number)
        for tap in range(TAPS):
            if 0 <= number - tap < count:
                row[number - tap] = write.multiply_add(taps[tap], value, row[number - tap])


def _spread(write: Emitter, row: list[Any], gradients: Any, weights: Any, count: int) -> None:
    """``row[k + j] += Σ weights[j] gradients[k]``: what a row of outputs says about a row of inputs."""
    taps = _taps(write, weights)
    for number in range(count):
        value = write.load(gradients, number)
        for tap in range(TAPS):
            row[number + tap] = write.multiply_add(taps[tap], value, row[number + tap])


def _products(write: Emitter, row: list[Any], gradients: Any, inputs: Any, count: int) -> None:
    """``row[j] += Σ_k gradients[k] inputs[k + j]``: what a row of outputs says about one row of the kernel."""
    window = [write.load(inputs, number) for number in range(TAPS - 1)]
    for number in range(count):
        window.append(write.load(inputs, number + TAPS - 1))
        value = write.load(gradients, number)
        for tap in range(TAPS):
            row[tap] = write.multiply_add(value, window[number + tap], row[tap])


correlate = _accumulation(_correlate)
spread = _accumulation(_spread)
products = _accumulation(_products)


def _writing(adds: bool) -> Any:
    """An operation that writes sums into an array from a flat place on, or adds them to what is there."""

    @intrinsic
    def operation(typing: Any, sums: Any, array: Any, at: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            write, data = _writing_in(context, builder, sums.dtype)
            target = data(array, *values[1:3])
            for number in range(sums.count):
                value = builder.load(write.place(values[0], number))
                if adds:
                    value = builder.fadd(value, write.load(target, number))
                write.store(value, target, number)
            return context.get_dummy_value()

        return types.void(sums, array, types.intp), emit

    return operation


put = _writing(adds=False)
add = _writing(adds=True)


# Convolutions


def _convolution(size: int, chunk: int, is_first: bool) -> tuple[Any, Any]:
    """A 5×5 convolution with ReLU and 2×2 max-pooling, for T tiles of L lanes.

    Args:
        size: Rows and columns of the convolution's output.
        chunk: Outputs of a row that are computed at once; divides ``size``.
        is_first: Whether its inputs are images, which need no gradients; otherwise ``chunk`` is ``size``.

    Returns:
        The forward and the backward pass.
    """
    side, half = size + TAPS - 1, size // 2

    @compiled
    def forward(inputs, weights, bias, pooled, winner, rows):  # type: ignore[no-untyped-def]
        """From inputs ``[T, C, side, side, L]`` to pooled outputs ``[T, O, half, half, L]``.

        ``winner`` tells which of the four pixels won, 0…3, or 4 where the ReLU is zero; ``rows`` is scratch.
        """
        tiles, channels, width = inputs.shape[0], inputs.shape[1], inputs.shape[4]
        zero = inputs.dtype.type(0)
        for tile in range(tiles):
            for out in range(weights.shape[0]):
                for row in range(half):
                    for below in range(2):
                        for column in range(0, size, chunk):
                            sums = sums_of(chunk, inputs, bias[out])
                            for channel in range(channels):
                                for tap in range(TAPS):
                                    line = (tile * channels + channel) * side + 2 * row + below + tap
                                    kernel = ((out * channels + channel) * TAPS + tap) * TAPS
                                    correlate(sums, chunk, inputs, (line * side + column) * width, weights, kernel)
                            put(sums, rows, (below * rows.shape[1] + column) * width)
                    for column in range(half):
                        for lane in range(width):
                            # As torch has it: the first of equals wins, and a NaN wins over all.
                            best, where = rows[0, 2 * column, lane], 0
                            value = rows[0, 2 * column + 1, lane]
                            wins = value > best or value != value
                            best, where = value if wins else best, 1 if wins else where
                            value = rows[1, 2 * column, lane]
                            wins = value > best or value != value
                            best, where = value if wins else best, 2 if wins else where
                            value = rows[1, 2 * column + 1, lane]
                            wins = value > best or value != value
                            best, where = value if wins else best, 3 if wins else where
                            pooled[tile, out, row, column, lane] = zero if best <= 0 else best
                            winner[tile, out, row, column, lane] = 4 if best <= 0 else where

    @compiled
    def backward(inputs, weights, gradients, winner, of_inputs, of_weights, of_bias, unpooled):  # type: ignore[no-untyped-def]
        """From gradients of the pooled outputs to those of inputs, weights and bias.

        Those of weights ``[O, C, 5, 5, L]`` and bias ``[O, L]`` are summed over tiles, not yet over lanes. ``unpooled``
        is scratch for what the convolution put out: ``[O, size, size, L]``, for the first layer ``[1, 2, size, L]``.
        """
        tiles, channels, width = inputs.shape[0], inputs.shape[1], inputs.shape[4]
        zero = inputs.dtype.type(0)
        of_weights[:] = 0
        of_bias[:] = 0
        for tile in range(tiles):
            for out in range(weights.shape[0]):
                for row in range(half):
                    plane, upper = (0, 0) if is_first else (out, 2 * row)
                    for column in range(half):
                        for lane in range(width):
                            where = winner[tile, out, row, column, lane]
                            value = gradients[tile, out, row, column, lane]
                            unpooled[plane, upper, 2 * column, lane] = value if where == 0 else zero
                            unpooled[plane, upper, 2 * column + 1, lane] = value if where == 1 else zero
                            unpooled[plane, upper + 1, 2 * column, lane] = value if where == 2 else zero
                            unpooled[plane, upper + 1, 2 * column + 1, lane] = value if where == 3 else zero
                            of_bias[out, lane] += zero if where == 4 else value
                    for channel in range(channels):
                        for tap in range(TAPS):
                            sums = sums_of(TAPS, inputs, zero)
                            for below in range(2):
                                line = (tile * channels + channel) * side + 2 * row + below + tap
                                own = plane * size + upper + below
                                for column in range(0, size, chunk):
                                    at, start = (own * size + column) * width, (line * side + column) * width
                                    products(sums, chunk, unpooled, at, inputs, start)
                            add(sums, of_weights, ((out * channels + channel) * TAPS + tap) * TAPS * width)
            if not is_first:
                for channel in range(channels):
                    for row in range(side):
                        sums = sums_of(side, inputs, zero)
                        for out in range(weights.shape[0]):
                            for tap in range(max(0, row - size + 1), min(TAPS - 1, row) + 1):
                                kernel = ((out * channels + channel) * TAPS + tap) * TAPS
                                spread(sums, size, unpooled, (out * size + row - tap) * size * width, weights, kernel)
                        put(sums, of_inputs, ((tile * channels + channel) * side + row) * side * width)

    return forward, backward


forward1, backward1 = _convolution(28, 14, is_first=True)
forward2, backward2 = _convolution(10, 10, is_first=False)
