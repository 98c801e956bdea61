"""MACs of operators that multiply matrices and of which a counter has no formula, or a wrong one.

Left to themselves, fvcore 0.1.5 and torch 2.14 agree that an LSTM, a bilinear layer, ``torch.mv`` and a deformable
convolution cost nothing. Of a GRU only torch has a number, and of vectors and of matrices that are broadcast fvcore's
is wrong, if it comes to one.

Operators of other libraries have the formula that torch knows of them (``torch.utils.flop_counter``'s
``register_flop_formula``), for both counters. One that has none is refused (:func:`unknown`).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

Shape = Sequence[int]
#: MACs of an operator, from what goes into it and what comes out, as values of a trace.
Handle = Callable[[Sequence[Any], Sequence[Any]], int]

#: Whose operators are known: those that multiply matrices have a formula here, in torch or in fvcore.
_KNOWN = ("aten", "prims", "torchvision")


def of_matmul(left: Shape, right: Shape) -> int:
    """Of ``[..., n, k] @ [..., k, m]``, leading sizes broadcast; of a vector, as of a matrix of one row or column."""
    *before, rows, inner = [1, *left] if len(left) == 1 else left
    *after, _, columns = [*right, 1] if len(right) == 1 else right
    return math.prod(torch.broadcast_shapes(before, after)) * rows * inner * columns


def of_contraction(left: Shape, right: Shape, summed: Iterable[int]) -> int:
    """Of two tensors over some dimensions of the first, each of which goes with one of the second."""
    return math.prod(left) * math.prod(right) // math.prod(left[dimension] for dimension in summed)


def of_convolution(weight: Shape, outputs: Shape) -> int:
    """Of a convolution with ``weight [out, in / groups, ...]``: each output takes all weights of its channel."""
    return math.prod(outputs) // weight[0] * math.prod(weight)


def of_chain(shapes: Sequence[Shape]) -> int:
    """Of a product of several matrices in the order that takes fewest, as ``torch.linalg.multi_dot`` takes them."""
    first, *middle, last = shapes
    # The ends may be vectors: a row, and a column.
    sizes = [1 if len(first) == 1 else first[0], first[-1], *(shape[1] for shape in middle)]
    sizes.append(1 if len(last) == 1 else last[1])
    least = {(place, place): 0 for place in range(len(shapes))}
    for length in range(1, len(shapes)):
        for start in range(len(shapes) - length):
            end = start + length
            least[start, end] = min(
                least[start, cut] + least[cut + 1, end] + sizes[start] * sizes[cut + 1] * sizes[end + 1]
                for cut in range(start, end)
            )
    return least[0, len(shapes) - 1]


def of_einsum(equation: str, shapes: Sequence[Shape]) -> int:
    """Of ``torch.einsum``, whose operands are multiplied from left to right, two at a time.

    What occurs in one operand alone and not in the result is summed before; without anything to sum over, numbers are
    multiplied one by one, which is no product of matrices.

    Args:
        equation: What :func:`torch.einsum` takes, as letters.
        shapes: Of the operands.
    """
    terms, arrow, result = equation.replace(" ", "").partition("->")
    operands = [_sizes(term, shape) for term, shape in zip(terms.split(","), shapes, strict=True)]
    met = Counter(letter for letter in terms if letter.isalpha())
    kept = set(result) if arrow else {letter for letter, count in met.items() if count == 1}
    if not arrow or "..." in result:
        kept |= {letter for operand in operands for letter in operand if not letter.isalpha()}
    found, *rest = operands
    count = 0
    for number, other in enumerate(rest, start=1):
        later = (letter for operand in rest[number:] for letter, size in operand.items() if size > 1)
        needed = kept.union(later)
        summed = {letter for letter in found.keys() - needed if min(found[letter], other.get(letter, 1)) > 1}
        together = {
            letter: max(found.get(letter, 1), other.get(letter, 1))
            for letter in found | other
            if letter in needed or letter in summed
        }
        count += math.prod(together.values()) if summed else 0
        found = {letter: size for letter, size in together.items() if letter in needed}
    return count


def _sizes(term: str, shape: Shape) -> dict[str, int]:
    """Sizes of what an operand has, by letter; what its ellipsis stands for, by number from the last."""
    before, _, after = term.partition("...")
    more = map(str, range(len(shape) - len(before) - len(after), 0, -1))
    return dict(zip((*before, *more, *after), shape, strict=True))


def of_recurrence(inputs: Shape, weights: Iterable[Shape]) -> int:
    """Of an LSTM, a GRU or a plain recurrence: each step multiplies by each matrix of weights once.

    Args:
        inputs: ``[..., features]``; all sizes but the last one are steps, of however many sequences.
        weights: Of all layers and directions; biases are not counted.
    """
    return math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def of_attention(query: Shape, key: Shape, value: Shape) -> int:
    """Of ``softmax(Q Kᵀ) V`` with ``Q [..., H, L, E]``, ``K [..., S, E]``, ``V [..., S, D]``: H L S (E + D)."""
    *heads, length, width = query
    return math.prod(heads) * length * key[-2] * (width + value[-1])


def unknown(operator: Any, arguments: Iterable[Any], formulas: Mapping[Any, Any]) -> bool:
    """Whether an operator may multiply matrices, and nobody says how many numbers.

    Args:
        operator: What torch executes.
        arguments: What it is given.
        formulas: Those that are known.
    """
    if not isinstance(operator, torch._ops.OpOverload) or operator.namespace in _KNOWN:
        return False
    matrices = [each for each in arguments if isinstance(each, torch.Tensor) and each.is_floating_point()]
    return operator.overloadpacket not in formulas and sum(each.dim() > 1 for each in matrices) > 1


def handles() -> dict[str, Handle]:
    """Formulas for fvcore, by name of the operator in a trace."""
    from fvcore.nn.jit_handles import get_shape

    def shapes(values: Iterable[Any]) -> list[Shape]:
        found: list[Shape] = [shape for shape in map(get_shape, values) if shape is not None]
        return found

    def listed(value: Any) -> list[Shape]:
        return shapes(value.node().inputs()) if value.node().kind() == "prim::ListConstruct" else []

    def matmul(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        return of_matmul(*shapes(inputs[:2]))

    def added(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        return of_matmul(*shapes(inputs[1:3]))

    def inner(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        left, right = shapes(inputs[:2])
        return of_contraction(left, right, [len(left) - 1])

    def tensordot(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        left, right = shapes(inputs[:2])
        return of_contraction(left, right, [each.toIValue() for each in inputs[2].node().inputs()])

    def einsum(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        return of_einsum(inputs[0].toIValue(), listed(inputs[1]))

    def chain(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        return of_chain(listed(inputs[0]))

    def bilinear(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        left, _, weight = shapes(inputs[:3])
        return math.prod(left[:-1]) * math.prod(weight)

    def convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        # Padding is a word there ("same"), which fvcore does not know.
        return of_convolution(*shapes([inputs[1], outputs[0]]))

    def recurrence(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        # Packed sequences come with their lengths before the state.
        return of_recurrence(shapes(inputs[:1])[0], [shape for each in inputs[1:] for shape in listed(each)])

    def cell(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        first, *others = inputs
        # The state of an LSTM is two tensors in a list, else one: neither is of weights.
        return of_recurrence(shapes([first])[0], shapes(others[1:]))

    def attention(inputs: Sequence[Any], _: Sequence[Any]) -> int:
        return of_attention(*shapes(inputs[:3]))

    def as_torch(formula: Callable[..., int]) -> Handle:
        def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return formula(*map(_bare, inputs), out_val=_bare(outputs[0])) // 2

        return handle

    recurrences = ("lstm", "gru", "rnn_tanh", "rnn_relu")
    own: dict[str, Handle] = {
        "_convolution_mode": convolution,
        **dict.fromkeys(("matmul", "mv", "dot", "vdot"), matmul),
        **dict.fromkeys(("addmv", "baddbmm"), added),
        "inner": inner,
        "tensordot": tensordot,
        "einsum": einsum,
        "bilinear": bilinear,
        **dict.fromkeys(("linalg_multi_dot", "chain_matmul"), chain),
        "scaled_dot_product_attention": attention,
        **dict.fromkeys(recurrences, recurrence),
        **dict.fromkeys((f"{name}_cell" for name in recurrences), cell),
    }
    others = {_name(operator): as_torch(formula) for operator, formula in _of_others().items()}
    return (
        {f"aten::{name}": handle for name, handle in own.items()} | {"torchvision::deform_conv2d": convolution} | others
    )


def _of_others() -> dict[Any, Callable[..., int]]:
    """Formulas that torch was told of operators that are not its own."""
    return {
        operator: formula
        for operator, formula in flop_registry.items()
        if isinstance(operator, torch._ops.OpOverloadPacket) and not _name(operator).startswith("aten::")
    }


def _name(operator: Any) -> str:
    return str(operator._qualified_op_name)


def _bare(value: Any) -> Any:
    """A value of a trace as an operator gets it; a tensor without its values."""
    from fvcore.nn.jit_handles import get_shape

    shape = get_shape(value)
    return value.toIValue() if shape is None else torch.empty(shape, device="meta")


def formulas() -> dict[Any, Callable[..., int]]:
    """Formulas for torch's counter, which counts two operations for each MAC, by operator that is executed."""

    def matmul(left: Shape, right: Shape, *_: Any, **__: Any) -> int:
        return 2 * of_matmul(left, right)

    def added(_: Shape, left: Shape, right: Shape, *__: Any, **___: Any) -> int:
        return 2 * of_matmul(left, right)

    def trilinear(first: Shape, second: Shape, third: Shape, *expanded: Any, **_: Any) -> int:
        sizes = []
        for shape, places in zip((first, second, third), expanded, strict=False):
            rest = iter(shape)
            sizes.append([1 if place in places else next(rest) for place in range(len(shape) + len(places))])
        return 2 * math.prod(torch.broadcast_shapes(*sizes))

    def recurrence_of_onednn(inputs: Shape, *weights: Any, **_: Any) -> int:
        return 2 * of_recurrence(inputs, weights[:2])

    def recurrence_on_device(inputs: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
        return 2 * of_recurrence(inputs, weights)

    def deformed(_: Shape, weight: Shape, *__: Any, out_shape: Shape, **___: Any) -> int:
        return 2 * of_convolution(weight, out_shape)

    operators = torch.ops.aten
    # Who has such a layer has loaded it; for others it takes as long as counting.
    others = {torch.ops.torchvision.deform_conv2d: deformed} if "torchvision.ops" in sys.modules else {}
    return {
        operators.mv: matmul,
        operators.dot: matmul,
        operators.vdot: matmul,
        operators.addmv: added,
        operators._trilinear: trilinear,
        operators.mkldnn_rnn_layer: recurrence_of_onednn,
        operators._cudnn_rnn: recurrence_on_device,
        operators.miopen_rnn: recurrence_on_device,
        **others,
    }
