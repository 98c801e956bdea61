"""Vectors of images, for kernels that are written in LLVM's instructions (llvmlite).

One image per SIMD lane: a batch is cut into tiles of as many images as a vector register holds. Every operation on a
tile is then a plain loop over whole vectors, whatever widths pruning left, and an image never meets another one before
the sums over the batch.

Arithmetic is IEEE; products and sums may be contracted to fused multiply-adds, as C compilers do; nothing is reordered.
Importing this module needs llvmlite, which comes with Numba.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]

#: Bytes of a vector: with AVX-512 one register; elsewhere, or where the target is named, one or two, which still fit.
VECTOR_BYTES = 64 if not os.environ.get("NUMBA_CPU_NAME") and binding.get_host_cpu_features().get("avx512f") else 32
#: What may be contracted; reordering ("fast" mathematics) is not.
CONTRACT = ("contract",)


def lanes(element_bytes: int) -> int:
    """Images of a tile."""
    return VECTOR_BYTES // element_bytes


class Emitter:
    """Writes LLVM instructions on vectors of one type.

    Attributes:
        bytes: Bytes of an element.
        lanes: Elements of a vector.
        element: LLVM's type of one.
        type: LLVM's type of a vector.
    """

    def __init__(self, builder: ir.IRBuilder, size: int) -> None:
        self.builder = builder
        self.bytes = size
        self.lanes = lanes(size)
        self.element = ir.FloatType() if size == 4 else ir.DoubleType()
        self.type = ir.VectorType(self.element, self.lanes)

    def place(self, pointer: ir.Value, elements: int) -> ir.Value:
        """Address that many elements, or vectors, behind another."""
        return self.builder.gep(pointer, [ir.Constant(ir.IntType(64), elements)])

    def at(self, pointer: ir.Value, place: Whole | int) -> ir.Value:
        """Address of an array's element, counted as if it were flat."""
        return self.place(pointer, place) if isinstance(place, int) else self.builder.gep(pointer, [place.value])

    def vector_at(self, pointer: ir.Value, place: Whole, count: int) -> ir.Value:
        """Address of so many elements of an array, counted as if it were flat, as one vector."""
        address = self.at(pointer, place)
        return self.builder.bitcast(address, ir.VectorType(address.type.pointee, count).as_pointer())

    def slots(self, count: int) -> list[ir.Value]:
        """Vectors that LLVM keeps in registers."""
        with self.builder.goto_entry_block():
            return [self.builder.alloca(self.type) for _ in range(count)]

    def number_slot(self) -> Callable[..., Any]:
        """One number that LLVM keeps in a register: written where it is called with one, else read."""
        with self.builder.goto_entry_block():
            slot = self.builder.alloca(self.element)

        def access(value: Real | None = None) -> Any:
            if value is None:
                return Real(self.builder, self.builder.load(slot))
            return self.builder.store(value.value, slot)

        return access

    def clear(self, slots: list[ir.Value]) -> None:
        """Make vectors zero."""
        for slot in slots:
            self.builder.store(ir.Constant(self.type, [0.0] * self.lanes), slot)

    def real(self, value: Any) -> Real:
        """One number: of LLVM's, or a constant, or what an integer is."""
        if isinstance(value, Whole):
            value = self.builder.sitofp(value.value, self.element)
        elif isinstance(value, int | float):
            value = ir.Constant(self.element, float(value))
        return Real(self.builder, value)

    def get(self, pointer: ir.Value, place: Whole | int) -> Real:
        """One number of an array."""
        return Real(self.builder, self.builder.load(self.at(pointer, place)))

    def put(self, value: Real, pointer: ir.Value, place: Whole | int) -> None:
        """Write one number into an array."""
        self.builder.store(value.value, self.at(pointer, place))

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
        with self.like(0).up_to(self, 1) as (number, _):
            yield number

    @contextmanager
    def up_to(self, end: Whole, step: int) -> Iterator[tuple[Whole, Whole]]:
        """A loop from this number on before an end: the number, and how many came before."""
        builder, kind = self.builder, self.value.type
        before = builder.basic_block
        head, body, after = (builder.append_basic_block(f"loop.{part}") for part in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        index, count = builder.phi(kind), builder.phi(kind)
        builder.cbranch(builder.icmp_signed("<", index, end.value), body, after)
        builder.position_at_end(body)
        yield self._new(index), self._new(count)
        steps = ((index, self.value, step), (count, ir.Constant(kind, 0), 1))
        for counter, first, by in steps:
            counter.add_incoming(first, before)
            counter.add_incoming(builder.add(counter, ir.Constant(kind, by), flags=("nsw",)), builder.basic_block)
        builder.branch(head)
        builder.position_at_end(after)

    @contextmanager
    def where(self) -> Iterator[None]:
        """Code that runs where this, a bit, is set."""
        with self.builder.if_then(self.value):
            yield

    def bit(self) -> Whole:
        """Whether it is not zero."""
        return self._new(self.builder.icmp_signed("!=", self.value, ir.Constant(self.value.type, 0)))


class Real:
    """A number of the code that is written, with Python's operators; products and sums may be contracted.

    Args:
        builder: Where its instructions go.
        value: LLVM's.
    """

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    def _with(self, operation: Callable[..., ir.Value], *others: Real) -> Real:
        return Real(self.builder, operation(self.value, *(other.value for other in others), flags=CONTRACT))

    def __add__(self, other: Real) -> Real:
        return self._with(self.builder.fadd, other)

    def __sub__(self, other: Real) -> Real:
        return self._with(self.builder.fsub, other)

    def __mul__(self, other: Real) -> Real:
        return self._with(self.builder.fmul, other)

    def __truediv__(self, other: Real) -> Real:
        return self._with(self.builder.fdiv, other)

    def __neg__(self) -> Real:
        return Real(self.builder, self.builder.fneg(self.value))

    def __gt__(self, other: Real) -> Whole:
        return Whole(self.builder, self.builder.fcmp_ordered(">", self.value, other.value))

    def times_plus(self, other: Real, added: Real) -> Real:
        """Product and sum, in one rounding where the processor has it: which of two products, is said so."""
        operands = [self.value, other.value, added.value]
        kind = self.value.type
        known = self.builder.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
        return Real(self.builder, self.builder.call(known, operands))

    def function(self, name: str) -> Real:
        """What one of LLVM's functions makes of it: ``exp``, ``log``, ``sqrt``."""
        known = self.builder.module.declare_intrinsic(f"llvm.{name}", [self.value.type])
        return Real(self.builder, self.builder.call(known, [self.value]))

    def double(self) -> Real:
        """The same in float64."""
        double = ir.DoubleType()
        is_double = self.value.type == double
        return self if is_double else Real(self.builder, self.builder.fpext(self.value, double))
