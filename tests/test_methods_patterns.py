"""Wanda, SparseGPT, their n:m patterns, isomorphic ranking: each against plain loops over its paper's formula."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from plays import brought

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import MethodError
from pruneaudit.method import conduct
from pruneaudit.method.answers import decide
from pruneaudit.pruning import shapes
from pruneaudit.pruning.arrivals import gram
from pruneaudit.pruning.equivalence import trained_like
from pruneaudit.pruning.layers import weight_names
from pruneaudit.pruning.patterns import crowded, ranks, removed_of
from pruneaudit.pruning.surgeon import DAMPING, pruned_by_columns
from pruneaudit.streams import generator
from pruneaudit.training.metering import Meter
from pruneaudit.workloads.data import load

torch.set_num_threads(1)

EXAMPLES = 24


@pytest.fixture(scope="module")
def workloads(tmp_path_factory):
    """A decoder with grouped queries, a vision transformer with a convolution and biases, and a plain network."""
    text = brought(tmp_path_factory.mktemp("text")).workload("text")
    return {"decoder": text, "vit": Catalog().workload("vit-digits"), "lenet": Catalog().workload("lenet5-digits")}


class Pruned:
    """A random network before and after a method, its masks, and what it was handed out to score with."""

    def __init__(self, method, workload, ratio=0.5):
        self.model = shapes.dense_network(workload).double().eval()
        trained_like(self.model, generator(5, "weights"))
        self.before = copy.deepcopy(self.model)
        dataset = load(workload.data)
        method = Catalog().method(method).create()
        recipe = workload.prune.model_copy(update={"steps": 0})
        patterns = (workload.prunable, workload.skip)
        job = conduct.Job(
            lambda: self.model, workload, dataset, *patterns, ratio, recipe, 3, "fp64", calibration=EXAMPLES
        )
        layers = conduct.layers_of(self.model, job, method)
        with Meter(self.model, example=dataset.example()) as meter:
            task = conduct.task_of(method, self.model, layers, job, meter)
            self.answer = decide(method, task)
        self.target, self.units = task.target, task.prunable
        self.names = weight_names(self.model)
        ((self.inputs, self.labels),) = task.batches(1)

    def matrix(self, name, model=None):
        return (self.before if model is None else model).get_parameter(f"{name}.weight").detach().flatten(1)

    def read(self, model, name):
        """What a layer reads of all examples, a row for each output it computes, ``[rows, in]``."""
        layer, seen = model.get_submodule(name), []
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        with torch.no_grad():
            model(self.inputs)
        handle.remove()
        if isinstance(layer, torch.nn.Conv2d):
            high, wide = layer.kernel_size
            padded = F.pad(seen[0], [layer.padding[1]] * 2 + [layer.padding[0]] * 2)
            patches = padded.unfold(2, high, layer.stride[0]).unfold(3, wide, layer.stride[1])
            return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
        return seen[0].flatten(0, -2)

    def norms(self, name):
        """‖x‖₂ of what each weight of a row multiplies; of a convolution that of its channel."""
        layer, seen = self.before.get_submodule(name), []
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        with torch.no_grad():
            self.before(self.inputs)
        handle.remove()
        if isinstance(layer, torch.nn.Conv2d):
            each = seen[0].square().sum(dim=(0, 2, 3)).sqrt()
            return each.repeat_interleave(layer.kernel_size[0] * layer.kernel_size[1])
        return seen[0].flatten(0, -2).square().sum(dim=0).sqrt()


def stays(pruned, name):
    return pruned.answer.masks[name].flatten(1)


@pytest.mark.parametrize("kind", ["decoder", "vit", "lenet"])
def test_wanda_takes_the_same_share_of_every_output(workloads, kind):
    pruned = Pruned("wanda", workloads[kind], ratio=0.25)
    for name in pruned.names:
        weight, norms, mask = pruned.matrix(name), pruned.norms(name), stays(pruned, name)
        assert int(mask.sum()) == pruned.target.stay[name]
        gone = (~mask).sum(dim=1)
        assert gone.max() - gone.min() <= 1, "rows lose alike"
        scores = weight.abs() * norms
        worst = scores.masked_fill(mask, -torch.inf).amax(dim=1)
        assert bool((worst <= scores.masked_fill(~mask, torch.inf).amin(dim=1)).all()), "the lowest of each row go"
    assert all(torch.equal(pruned.matrix(name), pruned.matrix(name, pruned.model)) for name in pruned.names)


@pytest.mark.parametrize(("ratio", "left"), [(0.5, 2), (0.25, 3), (0.75, 1)])
@pytest.mark.parametrize("method", ["wanda-nm", "sparsegpt-nm"])
def test_of_every_four_neighbours_as_many_stay(workloads, method, ratio, left):
    pruned = Pruned(method, workloads["decoder"], ratio=ratio)
    for name in pruned.names:
        mask = stays(pruned, name)
        assert bool((mask.reshape(-1, 4).sum(dim=1) == left).all())
        assert int(mask.sum()) == pruned.target.stay[name]


def test_wanda_nm_keeps_the_best_of_its_neighbours(workloads):
    pruned = Pruned("wanda-nm", workloads["vit"])
    for name in pruned.names:
        scores = (pruned.matrix(name).abs() * pruned.norms(name)).reshape(-1, 4)
        mask = stays(pruned, name).reshape(-1, 4)
        assert bool(
            (scores.masked_fill(~mask, torch.inf).amin(1) >= scores.masked_fill(mask, -torch.inf).amax(1)).all()
        )


def one_by_one(weight, gram, width, gone):
    """Optimal brain surgeon with a new inverse of the Hessian for every column: no Cholesky factor tells anything.

    Frozen columns leave the problem; the error of w is w² / [H⁻¹]₀₀ of what is left, and the others get
    - w / [H⁻¹]₀₀ · [H⁻¹]₀ (LeCun et al. 1989; Hassibi and Stork 1992).
    """
    weight, columns = weight.clone(), weight.shape[1]
    hessian = gram + DAMPING * gram.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(hessian[column:, column:]) for column in range(columns)]
    mask = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, columns, width):
        end = min(start + width, columns)
        errors = [weight[:, column] ** 2 / inverses[column][0, 0] for column in range(start, end)]
        mask[:, start:end] = ~gone(torch.stack(errors, dim=1), end)
        for column in range(start, end):
            gone_here, inverse = ~mask[:, column], inverses[column]
            weight[gone_here, column:] -= torch.outer(weight[gone_here, column] / inverse[0, 0], inverse[0])
            weight[gone_here, column] = 0
    return weight, mask


@pytest.mark.parametrize("method", ["sparsegpt", "sparsegpt-nm"])
@pytest.mark.parametrize("kind", ["decoder", "vit"])
def test_sparsegpt_is_the_surgeon_with_a_new_inverse_for_every_column(workloads, kind, method):
    pruned = Pruned(method, workloads[kind])
    model = copy.deepcopy(pruned.before)
    for number, name in enumerate(pruned.names):
        read = pruned.read(model, name)
        matrix = pruned.matrix(name, model)
        if number < 5:  # What it does to the first layers it does to all: loops over columns take their time.
            left, total = Counter(), matrix.numel() - pruned.target.stay[name]

            def cheapest(errors, end, total=total, wide=matrix.shape[1], left=left):
                if method == "sparsegpt-nm":
                    return ranks(errors) < 2
                count = total * end // wide - left["gone"]
                left["gone"] += count
                flags = torch.zeros(errors.numel(), dtype=torch.bool)
                flags[sorted(range(errors.numel()), key=errors.flatten().tolist().__getitem__)[:count]] = True
                return flags.view(errors.shape)

            weight, mask = one_by_one(matrix, read.T @ read, 4 if method == "sparsegpt-nm" else 128, cheapest)
            assert torch.equal(mask, stays(pruned, name)), name
            torch.testing.assert_close(pruned.matrix(name, pruned.model), weight, rtol=1e-7, atol=1e-9)
        assert int(stays(pruned, name).sum()) == pruned.target.stay[name]
        # Later layers see what earlier ones have become.
        with torch.no_grad():
            model.get_parameter(f"{name}.weight").copy_(pruned.model.get_parameter(f"{name}.weight"))


def test_making_up_errs_less_than_leaving_out(workloads):
    """Of the outputs of a layer, with the same weights gone."""
    pruned = Pruned("sparsegpt", workloads["decoder"])
    name = pruned.names[0]
    read, dense, mask = pruned.read(pruned.before, name), pruned.matrix(name), stays(pruned, name)
    wanted = read @ dense.T
    made_up, left_out = (read @ weight.T - wanted for weight in (pruned.matrix(name, pruned.model), dense * mask))
    assert made_up.square().sum() < 0.8 * left_out.square().sum()


def test_an_input_that_is_always_zero_goes_first():
    weight = torch.tensor([[3.0, 1.0, 2.0, 1.0]], dtype=torch.float64)
    found = torch.diag(torch.tensor([0.0, 1, 1, 1], dtype=torch.float64))
    left, mask = pruned_by_columns(weight, found, 4, lambda errors, end: ranks(errors) < 1)
    assert mask.tolist() == [[False, True, True, True]] and left.tolist() == [[0, 1, 2, 1]]


@pytest.mark.parametrize("kind", ["decoder", "vit"])
def test_isomorphic_ranks_heads_among_heads_and_neurons_among_neurons(workloads, kind):
    pruned = Pruned("isomorphic", workloads[kind])
    network = pruned.before
    F.cross_entropy(network(pruned.inputs), pruned.labels).backward()
    changes = {name: (each * each.grad).detach().abs() for name, each in network.named_parameters()}
    scores = {"heads": [], "neurons": []}
    for unit in pruned.units:
        gone, total = [], torch.zeros(unit.channels, dtype=torch.float64)
        for member in unit.members:
            for name in ("weight", "bias"):
                change = changes.get(f"{member.module}.{name}")
                if change is None or (name == "bias" and member.side == "inputs"):
                    continue
                each = change if change.dim() == 1 else change.sum(dim=0 if member.side == "inputs" else 1)
                for channel in range(unit.channels):
                    total[channel] += each[member.places[channel]].sum()
        kept = set(pruned.answer.kept[unit.name])
        for start in range(0, unit.channels, unit.bundle):
            gone.append((float(total[start : start + unit.bundle].sum()), start in kept, unit.name))
        scores["heads" if "attn" in unit.name else "neurons"] += gone
    for kind_of, found in scores.items():
        away = [score for score, stay, _ in found if not stay]
        best = {name: max(score for score, _, own in found if own == name) for *_, name in found}
        left = [score for score, stay, name in found if stay and score < best[name]]
        assert away, kind_of
        assert max(away) < min(left, default=float("inf")), "one threshold for all of a kind"
    shares = [sum(not stay for _, stay, _ in found) / len(found) for found in scores.values()]
    assert abs(shares[0] - shares[1]) <= 1 / len(scores["heads"]) + 1e-9, "each kind loses its share"


def test_ranks_are_by_row_and_ties_go_by_place():
    assert ranks(torch.tensor([[3.0, 1.0, 1.0], [0.0, 5.0, 2.0]])).tolist() == [[2, 0, 1], [0, 2, 1]]


def test_a_ratio_that_is_no_share_of_the_neighbours_is_told(workloads):
    assert [removed_of(count / 8, 8) for count in range(1, 8)] == list(range(1, 8))
    for ratio in (0.3, 0.1, 0.9):
        with pytest.raises(MethodError, match=r"no ratio 0\.\d; choose one of 0\.25, 0\.5, 0\.75"):
            removed_of(ratio, 4)
    with pytest.raises(MethodError, match=r"choose one of 0\.25, 0\.5, 0\.75"):
        Pruned("wanda-nm", workloads["decoder"], ratio=0.3)


@pytest.mark.parametrize("method", ["wanda-nm", "sparsegpt-nm"])
def test_rows_that_are_no_multiple_are_told_before_anything_runs(workloads, method):
    found = Catalog().method(method).create()
    assert found.skip(workloads["lenet"]) == "conv1 has 25 weights for each output, no multiple of 4"
    assert found.skip(workloads["decoder"]) is None and found.skip(workloads["vit"]) is None


def test_products_of_inputs_are_those_of_the_matrix_that_multiplies(workloads):
    pruned = Pruned("magnitude-layer", workloads["lenet"])
    for name in pruned.names:
        read = pruned.read(pruned.before, name)
        torch.testing.assert_close(gram(pruned.before, name, [(pruned.inputs, None)]), read.T @ read)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding="same"))
    with pytest.raises(MethodError, match="layer '0' pads by a name"):
        gram(model, "0", [])
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(MethodError, match="layer '0' is never called"):
        gram(model, "0", [])


def test_groups_that_hold_more_than_a_pattern_lets_stay_are_counted():
    weight = torch.zeros(2, 6)
    weight[0, :3] = weight[1, 4:] = 1.0
    # Three of four; and two at the end of a row, which are all that is there.
    assert crowded([weight], 2, 4) == 1 and crowded([weight], 1, 4) == 2 and crowded([weight], 3, 4) == 0
    assert crowded([torch.ones(1, 2, 2, 2), weight], 2, 4) == 3
