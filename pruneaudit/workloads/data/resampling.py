"""Pillow's resizing of images in colours, to the bit, in a fraction of its time, without images of Pillow's.

Pillow filters 8 bits in whole numbers (``src/libImaging/Resample.c``): along rows and columns in turn, each pass to 8
bits again, with weights of 22 binary places. Sums of whole numbers have one result in whatever order, so that vectors
may make them. Which pass comes first changes pixels, and changed with Pillow 13: the Pillow that is here is asked for
it (:func:`order`). Importing this module needs llvmlite (the extra ``compiled``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]

from pruneaudit.kernels.machine import Written
from pruneaudit.kernels.vectors import Emitter, Whole

#: Upper left corner, height and width of what is cut out.
Box = tuple[int, int, int, int]
#: Whether the vertical pass comes first, of the height and width that are there and those that are wanted.
Order = Callable[[int, int, int, int], bool]

_BITS = 22
_LANES = 16
_BYTES, _NUMBERS = (ir.VectorType(ir.IntType(bits), _LANES) for bits in (8, 32))
#: Pixels whose channels fill a vector; each takes four lanes, of which the last one is a channel of the next pixel.
_PIXELS = 4
#: Sides of fewer pixels do not fill one vector.
_NARROWEST = -(-_LANES // 3)


def _all(value: int) -> ir.Constant:
    return ir.Constant(_NUMBERS, [value] * _LANES)


def _lanes_of(write: Emitter, vector: ir.Value, lanes: list[int]) -> ir.Value:
    return write.builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _bytes(write: Emitter, pointer: ir.Value, place: Whole, count: int) -> ir.Value:
    return write.builder.load(write.vector_at(pointer, place, count), align=1)


def _summed(write: Emitter, taps: Whole, pixels: Callable[..., Any], weights: Callable[..., Any]) -> ir.Value:
    """Sixteen bytes of sixteen sums of products, rounded and limited as Pillow does."""
    builder = write.builder
    with builder.goto_entry_block():
        total = builder.alloca(_NUMBERS)
    builder.store(_all(1 << (_BITS - 1)), total)
    with taps.each() as tap:
        product = builder.mul(builder.zext(pixels(tap), _NUMBERS), weights(tap))
        builder.store(builder.add(builder.load(total), product), total)
    level = builder.ashr(builder.load(total), _all(_BITS))
    for sign, limit in (("<", _all(0)), (">", _all(255))):
        level = builder.select(builder.icmp_signed(sign, level, limit), limit, level)
    return builder.trunc(level, _BYTES)


def _write_horizontal(
    write: Emitter, source: Any, target: Any, line: Any, firsts: Any, weights: Any, start: Whole, pitch: Whole,
    rows: Whole, wide: Whole, width: Whole, taps: Whole,
) -> None:  # fmt: skip
    """Rows of ``wide`` pixels to rows of ``width``, four pixels at a time."""
    builder = write.builder
    pointer, size = ir.IntType(8).as_pointer(), ir.IntType(64)
    copy = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, size])
    with rows.each() as row:
        # Four bytes are read of each pixel: behind the last one of an image there may be nobody's memory.
        origin = write.at(source, start + row * pitch)
        builder.call(copy, [line, origin, (wide * 3).value, ir.Constant(ir.IntType(1), 0)])
        with ((width + (_PIXELS - 1)) // _PIXELS).each() as block:
            column = (block * _PIXELS).at_most(width - _PIXELS)
            places = [Whole(builder, builder.load(write.at(firsts, column + one))) * 3 for one in range(_PIXELS)]

            def pixels(tap: Whole, places: list[Whole] = places) -> ir.Value:
                one, two, three, four = (_bytes(write, line, place + tap * 3, 4) for place in places)
                lanes = ir.Constant(ir.VectorType(ir.IntType(32), 8), list(range(8)))
                halves = [builder.shuffle_vector(*pair, lanes) for pair in ((one, two), (three, four))]
                return builder.shuffle_vector(*halves, ir.Constant(_NUMBERS, list(range(_LANES))))

            def factors(tap: Whole, column: Whole = column) -> ir.Value:
                four = builder.load(write.vector_at(weights, tap * width + column, _PIXELS), align=4)
                return _lanes_of(write, four, [lane // 4 for lane in range(_LANES)])

            found = _summed(write, taps, pixels, factors)
            for one in range(_PIXELS):
                # The fourth byte is overwritten by the pixel behind it, and the last one's is to spare.
                place = write.vector_at(target, (row * width + column + one) * 3, 4)
                builder.store(_lanes_of(write, found, list(range(4 * one, 4 * one + 4))), place, align=1)


def _write_vertical(
    write: Emitter, source: Any, target: Any, firsts: Any, weights: Any, start: Whole, pitch: Whole, height: Whole,
    length: Whole, taps: Whole,
) -> None:  # fmt: skip
    """Rows of ``length`` bytes to ``height`` rows of as many, sixteen bytes at a time."""
    builder = write.builder
    with height.each() as row:
        first = Whole(builder, builder.load(write.at(firsts, row)))
        with ((length + (_LANES - 1)) // _LANES).each() as block:
            column = (block * _LANES).at_most(length - _LANES)

            def pixels(tap: Whole, first: Whole = first, column: Whole = column) -> ir.Value:
                return _bytes(write, source, start + (first + tap) * pitch + column, _LANES)

            def factors(tap: Whole, row: Whole = row) -> ir.Value:
                one = builder.load(write.vector_at(weights, tap * height + row, 1), align=4)
                return _lanes_of(write, one, [0] * _LANES)

            found = _summed(write, taps, pixels, factors)
            builder.store(found, write.vector_at(target, row * length + column, _LANES), align=1)


_horizontal = Written("horizontal", "pixels pixels pixels places weights" + 6 * " whole", _write_horizontal)
_vertical = Written("vertical", "pixels pixels places weights" + 5 * " whole", _write_vertical)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1, 1 - x, 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


#: What a filter makes of distances, and how far it reaches. Others need a sine, which libraries round as they like.
FILTERS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}


@lru_cache(maxsize=2048)
def _weights(size: int, wanted: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The first pixel that each wanted one is a sum of, ``[wanted]``, and what times, ``[taps, wanted]`` int32.

    The numbers are rounded in Pillow's order; none begins so late that its taps would end behind the last pixel.
    """
    filtered, reach = FILTERS[name]
    scale = size / wanted
    spread = max(scale, 1.0)
    centre = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((centre - reach * spread + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach * spread + 0.5).astype(np.int64), size)
    taps = int((last - first).max())
    begins = np.minimum(first, size - taps)
    pixel = begins + np.arange(taps)[:, None]
    found = filtered(np.abs((pixel - centre + 0.5) * (1.0 / spread)))
    found = np.where((pixel >= first) & (pixel < last), found, 0.0)
    found = found / np.add.accumulate(found)[-1] * (1 << _BITS)
    return begins, np.where(found < 0, found - 0.5, found + 0.5).astype(np.int32)


def resized(image: np.ndarray, box: Box, size: tuple[int, int], name: str, order: Order) -> np.ndarray:
    """A part of an image, resized as Pillow does what was cut out.

    Args:
        image: ``[H, W, 3]`` uint8, in C order.
        box: What is cut out, within the image; like what is wanted, at least :func:`wide_enough`.
        size: Height and width that are wanted.
        name: One of :data:`FILTERS`.
        order: Which pass comes first.

    Returns:
        An image ``[h, w, 3]`` uint8.
    """
    (top, left, tall, wide), (height, width) = box, size
    columns, rows = _weights(wide, width, name), _weights(tall, height, name)
    pitch = image.shape[1] * 3
    start, horizontal_taps, vertical_taps = top * pitch + left * 3, len(columns[1]), len(rows[1])
    line, found = np.empty(wide * 3 + 1, np.uint8), np.empty(height * width * 3 + 1, np.uint8)
    if order(tall, wide, height, width):
        between = np.empty(height * wide * 3, np.uint8)
        _vertical(image, between, *rows, start, pitch, height, wide * 3, vertical_taps)()
        _horizontal(between, found, line, *columns, 0, wide * 3, height, wide, width, horizontal_taps)()
    else:
        between = np.empty(tall * width * 3 + 1, np.uint8)
        _horizontal(image, between, line, *columns, start, pitch, tall, wide, width, horizontal_taps)()
        _vertical(between, found, *rows, 0, width * 3, height, width * 3, vertical_taps)()
    return found[:-1].reshape(height, width, 3)


def wide_enough(wide: int, width: int) -> bool:
    """Whether rows of so many pixels, before and after, fill a vector."""
    return min(wide, width) >= _NARROWEST


def vertical_first_where_height_shrinks_more(tall: int, wide: int, height: int, width: int) -> bool:
    """Since Pillow 13: where height shrinks by more than twice as many pixels as width does."""
    return tall - height > max(0, 2 * (wide - width))


def horizontal_first(tall: int, wide: int, height: int, width: int) -> bool:
    """Before Pillow 13."""
    return False


@cache
def order() -> Order | None:
    """Which pass comes first in the Pillow that is here; None: it computes something else, and has to do it itself."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    cases = [
        ((top, left, tall, wide), size, name)
        for top, left, tall, wide in ((0, 0, 90, 60), (5, 7, 80, 21), (9, 1, 20, 40))
        for size in ((24, 24), (31, 58), (64, 17))
        for name in FILTERS
    ]

    def pillows(box: Box, size: tuple[int, int], name: str) -> np.ndarray:
        top, left, tall, wide = box
        part = Image.fromarray(np.ascontiguousarray(noise[top : top + tall, left : left + wide]))
        return np.asarray(part.resize((size[1], size[0]), Image.Resampling[name.upper()]))

    expected = [pillows(*case) for case in cases]
    for known in (vertical_first_where_height_shrinks_more, horizontal_first):
        if all(
            np.array_equal(resized(noise, *case, known), pixels) for case, pixels in zip(cases, expected, strict=True)
        ):
            return known
    return None
