"""MACs of what multiplies matrices without being a layer that every counter knows: both counters, and by hand."""

import itertools
import math
import secrets

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula
from torchvision.ops import DeformConv2d

from pruneaudit.errors import ConfigError
from pruneaudit.measure.cost import macs, macs_by_layer, macs_by_torch
from pruneaudit.measure.products import formulas, of_chain, of_einsum, of_matmul

torch.set_num_threads(1)

#: Steps of a sequence, numbers at each, and numbers of a state.
STEPS, FEATURES, STATE = 5, 6, 7


class Reading(nn.Module):
    """A recurrence over a sequence, whose last output a layer reads."""

    def __init__(self, recurrence, outputs, packed=False):
        super().__init__()
        self.recurrence, self.last, self.packed = recurrence, nn.Linear(outputs, 3), packed

    def forward(self, sequence):
        if self.packed:
            lengths = torch.tensor([sequence.shape[1]])
            packed = nn.utils.rnn.pack_padded_sequence(sequence, lengths, batch_first=True)
            return self.last(self.recurrence(packed)[0].data[-1:])
        return self.last(self.recurrence(sequence)[0][:, -1])


class Stepping(nn.Module):
    """The same, step by step."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.last = cell, nn.Linear(STATE, 3)

    def forward(self, sequence):
        state = None
        for step in sequence.unbind(1):
            state = self.cell(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state)


def one(gates, inputs=FEATURES, state=STATE):
    """MACs of one step of one recurrence."""
    return gates * state * (inputs + state)


RECURRENCES = {
    "LSTM": (Reading(nn.LSTM(FEATURES, STATE, batch_first=True), STATE), one(4)),
    "GRU": (Reading(nn.GRU(FEATURES, STATE, batch_first=True), STATE), one(3)),
    "RNN": (Reading(nn.RNN(FEATURES, STATE, batch_first=True), STATE), one(1)),
    "RNN, ReLU": (Reading(nn.RNN(FEATURES, STATE, nonlinearity="relu", batch_first=True), STATE), one(1)),
    "two layers": (Reading(nn.LSTM(FEATURES, STATE, 2, batch_first=True), STATE), one(4) + one(4, STATE)),
    "both ways": (Reading(nn.LSTM(FEATURES, STATE, batch_first=True, bidirectional=True), 2 * STATE), 2 * one(4)),
    "no biases": (Reading(nn.LSTM(FEATURES, STATE, bias=False, batch_first=True), STATE), one(4)),
    "projected": (
        Reading(nn.LSTM(FEATURES, STATE, proj_size=2, batch_first=True), 2),
        4 * STATE * (FEATURES + 2) + STATE * 2,
    ),
    "packed": (Reading(nn.GRU(FEATURES, STATE, batch_first=True), STATE, packed=True), one(3)),
    "LSTM cell": (Stepping(nn.LSTMCell(FEATURES, STATE)), one(4)),
    "GRU cell": (Stepping(nn.GRUCell(FEATURES, STATE)), one(3)),
    "RNN cell": (Stepping(nn.RNNCell(FEATURES, STATE)), one(1)),
}


@pytest.mark.parametrize(("model", "step"), RECURRENCES.values(), ids=RECURRENCES)
def test_a_recurrence_counts_at_every_step(model, step):
    example = torch.zeros(1, STEPS, FEATURES)
    last = model.last.weight.numel()
    assert macs(model, example) == macs_by_torch(model, example) == STEPS * step + last
    name = "recurrence" if isinstance(model, Reading) else "cell"
    assert macs_by_layer(model, example) == {name: STEPS * step, "last": last}


class Multiplies(nn.Module):
    """A network of one operation."""

    def __init__(self, operation, *shapes):
        super().__init__()
        self.operation = operation
        self.weights = nn.ParameterList([torch.ones(shape) for shape in shapes])

    def forward(self, values):
        return self.operation(values[0], *self.weights)


#: Values are ``[4, 6]``.
OPERATIONS = {
    "mv": (Multiplies(torch.mv, (6,)), 24),
    "addmv": (Multiplies(lambda x, bias, vector: torch.addmv(bias, x, vector), (4,), (6,)), 24),
    "dot": (Multiplies(lambda x, vector: torch.dot(x[0], vector), (6,)), 6),
    "matrix @ vector": (Multiplies(torch.matmul, (6,)), 24),
    "vector @ matrix": (Multiplies(lambda x, matrix: x[0] @ matrix, (6, 5)), 30),
    "vector @ matrices": (Multiplies(lambda x, matrices: x[0] @ matrices, (3, 6, 5)), 90),
    "mm": (Multiplies(torch.mm, (6, 5)), 120),
    "matrix @ matrices": (Multiplies(torch.matmul, (3, 6, 5)), 360),
    "broadcast": (Multiplies(lambda x, matrices: x.expand(2, 1, 4, 6) @ matrices, (3, 6, 5)), 720),
    "baddbmm": (
        Multiplies(lambda x, bias, matrices: torch.baddbmm(bias, x[None], matrices), (1, 4, 5), (1, 6, 5)),
        120,
    ),
    "bilinear": (Multiplies(lambda x, weight: F.bilinear(x, x, weight), (5, 6, 6)), 4 * 5 * 6 * 6),
    "multi_dot": (
        Multiplies(lambda *matrices: torch.linalg.multi_dot(matrices), (6, 2), (2, 5)),
        4 * 6 * 2 + 4 * 2 * 5,
    ),
    "inner": (Multiplies(torch.inner, (5, 6)), 120),
    "tensordot": (Multiplies(lambda x, weight: torch.tensordot(x, weight, dims=([1, 0], [0, 2])), (6, 5, 4)), 120),
    "einsum": (Multiplies(lambda x, weight: torch.einsum("...i,ij->...j", x, weight), (6, 5)), 120),
    "einsum, summed before": (Multiplies(lambda x, weight: torch.einsum("ni,ij->j", x, weight), (6, 5)), 30),
    "einsum, no product": (Multiplies(lambda x, weight: torch.einsum("ni,j->nij", x, weight), (5,)), 0),
}


@pytest.mark.parametrize(("model", "count"), OPERATIONS.values(), ids=OPERATIONS)
def test_a_product_counts_whatever_writes_it(model, count):
    example = torch.ones(1, 4, 6)
    assert macs(model, example) == macs_by_torch(model, example) == count


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (4, 1), (3, 2)])
def test_a_convolution_counts_whose_padding_is_a_word(kernel, groups):
    model = nn.Conv2d(4, 6, kernel, padding="same", groups=groups)
    example = torch.zeros(1, 4, 9, 9)
    assert macs(model, example) == macs_by_torch(model, example) == 81 * model.weight.numel()


class Handed(nn.Module):
    """A network one of whose layers is given a view of a parameter: a class token, say."""

    def __init__(self):
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.ones(1, 6)), nn.Linear(6, 3)

    def forward(self, values):
        return self.layer(self.token.expand(len(values), -1)) + self.layer(values[:, 0])


def test_what_is_given_to_a_module_may_be_a_view_of_a_parameter():
    model, example = Handed(), torch.zeros(1, 4, 6)
    assert macs(model, example) == macs_by_torch(model, example) == 2 * 18
    assert all(parameter.requires_grad for parameter in model.parameters())


class Bent(nn.Module):
    """A convolution that looks where another one tells it."""

    def __init__(self):
        super().__init__()
        self.where, self.bent = nn.Conv2d(4, 18, 3, padding=1), DeformConv2d(4, 6, 3, padding=1, groups=2)

    def forward(self, images):
        return self.bent(images, self.where(images))


def test_a_deformable_convolution_counts_as_one_that_is_none():
    model, example = Bent(), torch.zeros(1, 4, 9, 9)
    layers = {"where": 81 * model.where.weight.numel(), "bent": 81 * model.bent.weight.numel()}
    assert macs_by_layer(model, example) == layers
    assert macs_by_torch(model, example) == sum(layers.values())


class OfOldKind(torch.autograd.Function):
    """A convolution whose gradient is its own, as functions of a context are written."""

    @staticmethod
    def forward(context, images, weight):
        context.save_for_backward(images, weight)
        context.wanted = context.needs_input_grad[0]
        return F.conv2d(images, weight, padding=1)

    @staticmethod
    def backward(context, gradient):
        return None, None


class OfNewKind(torch.autograd.Function):
    """The same, as functions are written that set their context up apart."""

    @staticmethod
    def forward(images, weight):
        return F.conv2d(images, weight, padding=1)

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)

    backward = OfOldKind.backward


WAYS = {
    "old": lambda layer, images: OfOldKind.apply(images, layer.weight),
    "new": lambda layer, images: OfNewKind.apply(images, layer.weight),
    "checkpoint": lambda layer, images: checkpoint(layer, images, use_reentrant=True),
}


class Own(nn.Module):
    """A network with a function that has a gradient of its own."""

    def __init__(self, way):
        super().__init__()
        self.way, self.layer, self.last = way, nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Linear(6, 3)

    def forward(self, images):
        return self.last(self.way(self.layer, images).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_a_function_with_a_gradient_of_its_own_computes_counts(way):
    model, example = Own(way), torch.zeros(1, 4, 9, 9)
    assert macs(model, example) == macs_by_torch(model, example) == 81 * model.layer.weight.numel() + 18
    # And it has that gradient afterwards.
    assert type(OfOldKind.apply(example.requires_grad_(), model.layer.weight).grad_fn).__name__ == "OfOldKindBackward"


@pytest.fixture
def operator():
    """An operator of another library, which multiplies matrices, and what it takes."""
    name = f"audited{secrets.token_hex(4)}::product"

    @torch.library.custom_op(name, mutates_args=())
    def product(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * left @ right

    product.register_fake(lambda left, right, scale: left.new_empty(left.shape[0], right.shape[1]))
    found = getattr(torch.ops, name.partition("::")[0]).product
    yield found
    flop_registry.pop(found, None)


class Strange(nn.Module):
    """A network whose weights an operator of another library multiplies."""

    def __init__(self, operator, places):
        super().__init__()
        self.operator, self.weight = operator, nn.Parameter(torch.ones(places))
        self.last = nn.Linear(places[-1], 3)

    def forward(self, values):
        return self.last(self.operator(values, self.weight, 0.5))


def test_an_operator_of_another_library_is_refused_until_torch_knows_what_it_multiplies(operator):
    model, example = Strange(operator, (6, 5)), torch.ones(2, 6)
    told = rf"no counter knows what operator {operator} multiplies.*register_flop_formula\(torch.ops.{operator}\)"
    with pytest.raises(ConfigError, match=told):
        macs_by_torch(model, example)

    @register_flop_formula(operator)
    def formula(left, right, scale, out_shape=None):
        return 2 * left[0] * left[1] * right[1]

    assert macs(model, example) == macs_by_torch(model, example) == 2 * (6 * 5 + 5 * 3)
    assert macs_by_layer(model, example) == {"": 2 * 6 * 5, "last": 2 * 5 * 3}


def test_a_formula_may_be_one_of_whole_tensors(operator):
    model, example = Strange(operator, (6, 5)), torch.ones(2, 6)
    register_flop_formula(operator, get_raw=True)(
        lambda left, right, scale, out_val=None: 2 * left.numel() * right.shape[1]
    )
    assert macs(model, example) == macs_by_torch(model, example) == 2 * (6 * 5 + 5 * 3)


def by_torch(operation):
    """MACs that torch executes."""
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        operation()
    return counter.get_total_flops() // 2


@st.composite
def equations(draw):
    """An equation of ``torch.einsum`` and shapes of its operands."""
    sizes = draw(st.fixed_dictionaries({letter: st.integers(1, 4) for letter in "abcd"}))
    more = draw(st.lists(st.integers(1, 3), max_size=2))
    terms, shapes = [], []
    for _ in range(draw(st.integers(1, 4))):
        letters = draw(st.lists(st.sampled_from("abcd"), max_size=3, unique=True))
        place = draw(st.integers(0, len(letters))) if draw(st.booleans()) else None
        shape = [draw(st.sampled_from([1, sizes[letter]])) for letter in letters]
        term = "".join(letters)
        if place is not None:
            own = more[draw(st.integers(0, len(more))) :]
            term, shape = f"{term[:place]}...{term[place:]}", [*shape[:place], *own, *shape[place:]]
        terms.append(term)
        shapes.append(shape)
    used = sorted({letter for term in terms for letter in term} - {"."})
    result = draw(st.permutations(used)) if used else []
    result = "".join(result[: draw(st.integers(0, len(result)))])
    return ",".join(terms) + draw(st.sampled_from(["", f"->{result}", f"->...{result}"])), shapes


@given(equations())
def test_an_einsum_counts_what_torch_executes(case):
    equation, shapes = case
    tensors = [torch.ones(shape) for shape in shapes]
    with torch.backends.opt_einsum.flags(enabled=False):
        try:
            torch.einsum(equation, *tensors)
        except RuntimeError:  # Sizes that do not go together.
            return
        assert of_einsum(equation, shapes) == by_torch(lambda: torch.einsum(equation, *tensors))


@given(st.lists(st.integers(1, 3), max_size=4), st.lists(st.integers(1, 3), max_size=4), st.integers(1, 4))
def test_a_product_counts_what_torch_executes(left, right, inner):
    left, right = [*left, inner], [*right[:-1], inner, *right[-1:]]
    try:
        torch.broadcast_shapes(left[:-2], right[:-2])
    except RuntimeError:
        return
    ours = of_matmul(left, right)
    assert ours == by_torch(lambda: torch.ones(left) @ torch.ones(right))
    # As many as a plain loop over all results would do.
    assert ours == math.prod((torch.empty(left) @ torch.empty(right)).shape) * inner


@given(st.lists(st.integers(1, 6), min_size=3, max_size=6), st.booleans(), st.booleans())
def test_a_chain_counts_what_torch_executes(sizes, is_row, is_column):
    """In whatever order torch finds cheapest; its ends may be vectors."""
    shapes = list(map(list, itertools.pairwise(sizes)))
    shapes[0], shapes[-1] = shapes[0][is_row:], shapes[-1][: 2 - is_column]
    assert of_chain([[1, *shapes[0]] if is_row else shapes[0], *shapes[1:-1], shapes[-1]]) == of_chain(shapes)
    sizes = [1 if is_row else sizes[0], *sizes[1:-1], 1 if is_column else sizes[-1]]
    matrices = [torch.ones(shape) for shape in itertools.pairwise(sizes)]
    assert of_chain(shapes) == by_torch(lambda: torch.linalg.multi_dot(matrices))
