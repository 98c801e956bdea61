"""LeNet-5's convolutions, forward and backward, compiled for the CPU at first use (Numba).

One image per SIMD lane: a batch is cut into tiles of as many images as a vector register holds, and the activations
of a tile lie as ``[channels, rows, columns, lanes]``. Every operation is then a plain loop over whole vectors, whatever
widths pruning left, and an image never meets another one before the sums over the batch.

Numba neither unrolls a row of outputs nor keeps it in registers, so the three loops that take nearly all the time are
written in LLVM's vectors (:func:`correlate`, :func:`spread`, :func:`products`). Arithmetic is IEEE; products and sums
may be contracted to fused multiply-adds, as C compilers do; nothing is reordered.

Importing this module needs Numba; :mod:`pruneaudit.training.compiled` says what to do where it is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

TAPS = 5
#: Bytes of a vector: with AVX-512 one register; elsewhere, or where the target is named, one or two, which still fit.
VECTOR_BYTES = (
    64 if getattr(config, "CPU_NAME", None) is None and binding.get_host_cpu_features().get("avx512f") else 32
)
#: What may be contracted; reordering ("fast" mathematics) is not.
_CONTRACT = ("contract",)


def lanes(element_bytes: int) -> int:
    """Images of a tile."""
    return VECTOR_BYTES // element_bytes


def compiled(function: Callable[..., Any]) -> Any:
    """Compile once and keep the machine code: in the package, else in the user's cache, else for this process only."""
    options: dict[str, Any] = {"fastmath": set(_CONTRACT), "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither folder can be written, and NUMBA_CACHE_DIR names none.
        return njit(**options)(function)


# Vectors


class _Emitter:
    """Writes LLVM instructions on vectors of one type."""

    def __init__(self, context: Any, builder: ir.IRBuilder, dtype: types.Float) -> None:
        self.context = context
        self.builder = builder
        self.bytes = dtype.bitwidth // 8
        self.lanes = lanes(self.bytes)
        self.type = ir.VectorType(context.get_value_type(dtype), self.lanes)

    def place(self, pointer: ir.Value, elements: int) -> ir.Value:
        return self.builder.gep(pointer, [ir.Constant(ir.IntType(64), elements)])

    def data(self, kind: types.Array, array: ir.Value, at: ir.Value) -> ir.Value:
        """Address of an array's element, counted as if it were flat."""
        start = cgutils.create_struct_proxy(kind)(self.context, self.builder, array).data
        return self.builder.gep(start, [at])

    def _vector(self, pointer: ir.Value, number: int) -> ir.Value:
        return self.builder.bitcast(self.place(pointer, number * self.lanes), self.type.as_pointer())

    def load(self, pointer: ir.Value, number: int) -> ir.Value:
        """The vector that lies ``number`` vectors behind an address."""
        return self.builder.load(self._vector(pointer, number), align=self.bytes)

    def store(self, value: ir.Value, pointer: ir.Value, number: int) -> None:
        self.builder.store(value, self._vector(pointer, number), align=self.bytes)

    def fill(self, scalar: ir.Value) -> ir.Value:
        """A vector with one number in all lanes."""
        nothing = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(nothing, scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, nothing, zeros)

    def taps(self, pointer: ir.Value) -> list[ir.Value]:
        """The weights of one row of a kernel."""
        return [self.fill(self.builder.load(self.place(pointer, tap))) for tap in range(TAPS)]

    def multiply_add(self, one: ir.Value, other: ir.Value, total: ir.Value) -> ir.Value:
        product = self.builder.fmul(one, other, flags=_CONTRACT)
        return self.builder.fadd(product, total, flags=_CONTRACT)


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
        write = _Emitter(context, builder, like.dtype)
        sums = cgutils.alloca_once(builder, write.type, size=ir.Constant(ir.IntType(64), kind.count))
        first = write.fill(context.cast(builder, values[2], signature.args[2], like.dtype))
        for number in range(kind.count):
            builder.store(first, write.place(sums, number))
        return sums

    return kind(count, like, start), emit


sums_of: Any = intrinsic(prefer_literal=True)(_sums_of)


def _accumulation(body: Callable[[_Emitter, list[Any], Any, Any, int], None]) -> Any:
    """An operation that adds to sums what ``body`` makes of two arrays from two flat places on, over ``count``."""

    @intrinsic(prefer_literal=True)
    def operation(typing: Any, sums: Any, count: Any, one: Any, at: Any, other: Any, start: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            write = _Emitter(context, builder, sums.dtype)
            slots = [write.place(values[0], number) for number in range(sums.count)]
            row = [builder.load(slot) for slot in slots]
            first, second = write.data(one, *values[2:4]), write.data(other, *values[4:6])
            body(write, row, first, second, count.literal_value)
            for slot, value in zip(slots, row, strict=True):
                builder.store(value, slot)
            return context.get_dummy_value()

        return types.void(sums, count, one, types.intp, other, types.intp), emit

    return operation


def _correlate(write: _Emitter, row: list[Any], inputs: Any, weights: Any, count: int) -> None:
    """``row[k] += Σ_j weights[j] inputs[k + j]``: a row of outputs and one row of the kernel."""
    taps = write.taps(weights)
    for number in range(count + TAPS - 1):
        value = write.load(inputs, number)
        for tap in range(TAPS):
            if 0 <= number - tap < count:
                row[number - tap] = write.multiply_add(taps[tap], value, row[number - tap])


def _spread(write: _Emitter, row: list[Any], gradients: Any, weights: Any, count: int) -> None:
    """``row[k + j] += Σ weights[j] gradients[k]``: what a row of outputs says about a row of inputs."""
    taps = write.taps(weights)
    for number in range(count):
        value = write.load(gradients, number)
        for tap in range(TAPS):
            row[number + tap] = write.multiply_add(taps[tap], value, row[number + tap])


def _products(write: _Emitter, row: list[Any], gradients: Any, inputs: Any, count: int) -> None:
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
            write = _Emitter(context, builder, sums.dtype)
            target = write.data(array, *values[1:3])
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


# Loss and optimiser


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
