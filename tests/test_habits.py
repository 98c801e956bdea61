"""Honest habits of people who write methods: each works, or gets one line that says what to do."""

import copy

import numpy as np
import pytest
import small
import torch
import torch.nn.utils.prune
from builders import run_record, run_spec

from pruneaudit import Budget, FilterScore, Hooks, TrainedMethod, WeightScore, check_method
from pruneaudit.errors import MethodError
from pruneaudit.method import conduct, task
from pruneaudit.report import frames, results
from pruneaudit.training.precision import place
from pruneaudit.workloads.recipes import Recipe


class L1(FilterScore):
    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(dim=1)


def scored(convert):
    """L1, given as something else than a tensor."""

    class Converted(L1):
        def score(self, layer, task):
            return convert(super().score(layer, task))

    return Converted()


@pytest.fixture(scope="module")
def l1():
    return small.prune(L1(), "resnet20").answer


@pytest.mark.parametrize(
    "convert",
    [
        lambda scores: scores.tolist(),
        lambda scores: scores.numpy(),
        list,
        lambda scores: tuple(scores.tolist()),
        lambda scores: torch.nn.Parameter(scores),
        lambda scores: (scores > scores.median()).to(torch.float8_e5m2),
    ],
    ids=["list", "numpy", "tensors", "tuple", "parameter", "eight bits"],
)
def test_scores_may_be_what_becomes_a_tensor(convert, l1):
    assert small.prune(scored(convert), "resnet20").answer == l1


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (lambda scores: None, "with None; did it forget to return? expected a tensor of shape [16]"),
        (lambda scores: "high", "with str; expected a tensor of shape [16], one real number for each filter"),
        (lambda scores: scores * 1j, "with Tensor; expected a tensor of shape [16], one real number"),
        (lambda scores: scores.to_sparse(), "with Tensor; expected a tensor of shape [16], one real number"),
        (lambda scores: scores.to("meta"), "with Tensor; expected a tensor of shape [16], one real number"),
        (lambda scores: scores[:3].tolist(), "with shape [3]; expected [16]"),
        (lambda scores: [[1.0], [2.0, 3.0]], "with list; expected a tensor of shape [16]"),
        (lambda scores: np.full(16, np.nan), "a score that is not finite"),
    ],
    ids=["none", "text", "complex", "sparse", "meta", "short", "ragged", "nan"],
)
def test_what_is_no_score_is_one_line_that_names_the_layer(convert, said):
    with pytest.raises(MethodError) as caught:
        small.prune(scored(convert), "resnet20")
    text = str(caught.value)
    assert said in text and "layer 'layer1.0.conv1'" in text and "\n" not in text


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"steps": -4}, "Budget(steps=-4): expected a whole number from 0 on"),
        ({"steps": 2.5}, "Budget(steps=2.5): expected a whole number from 0 on"),
        ({"samples": True}, "Budget(samples=True): expected a whole number from 0 on"),
        ({"steps": 10**30}, "expected a whole number from 0 on"),
        ({"steps": 5, "lr": "fast"}, "Budget(lr='fast'): "),
        ({"steps": 5, "lr": 1e-3}, "Budget(lr=0.001): expected a schedule's text, such as '0:1e-2'"),
    ],
)
def test_a_budget_that_nobody_can_plan_with_is_one_line(declared, said):
    with pytest.raises(MethodError) as caught:
        Budget(**declared)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_budget_may_be_counted_by_numpy():
    budget = Budget(steps=np.int64(3), samples=np.ceil(2.5).astype(int))
    assert (type(budget.steps), type(budget.samples)) == (int, int)


class Frozen(L1):
    """Asks for no gradients, as pure scoring need not."""

    def prune(self, task):
        task.model.requires_grad_(False)
        return super().prune(task)


def test_a_method_may_switch_gradients_off(l1):
    pruned = small.prune(Frozen(), "resnet20")
    assert pruned.answer == l1
    # The harness traces the network that the method leaves, and leaves its switches as they are.
    assert conduct.equivalence(pruned.model, pruned.answer, small.few_digits("resnet20")) < 1e-10
    assert not any(parameter.requires_grad for parameter in pruned.model.parameters())


class ByView(FilterScore):
    """Flattens by view, the commonest idiom of pruning code; and writes through a view, which a copy would lose."""

    def score(self, layer, task):
        assert layer.weight.view(-1).data_ptr() == layer.weight.data_ptr()
        return layer.weight.view(layer.channels, -1).abs().sum(dim=1)


class ByTorch(WeightScore):
    """torch.nn.utils.prune on a copy, layer by layer."""

    def score(self, layer, task): ...

    def prune(self, task):
        network = copy.deepcopy(task.model)
        masks = {}
        for layer in task.layers:
            module = network.get_submodule(layer.name)
            torch.nn.utils.prune.l1_unstructured(module, "weight", amount=task.removed(layer))
            masks[layer.name] = module.weight_mask.bool()
        return masks


class ByViewAfterTraining(ByView):
    """Trains, then scores."""

    def budget(self, workload):
        return Budget(steps=2)

    def prune(self, task):
        task.train()
        return super().prune(task)


def placed(name):
    """A network as runs have it."""
    return place(small.network(name), "cpu", "fp64")


def test_weights_are_laid_out_as_their_shape_says(l1):
    assert not placed("resnet20").layer1[0].conv1.weight.is_contiguous(), "else this tests nothing"
    assert small.prune(ByView(), "resnet20", placed("resnet20")).answer == l1
    by_torch = small.prune(ByTorch(), "resnet20", placed("resnet20")).answer
    assert by_torch == small.prune("magnitude-layer", "resnet20", placed("resnet20")).answer
    assert small.prune(ByViewAfterTraining(), "resnet20", placed("resnet20"), steps=2).answer.kept
    for method in (ByView, ByTorch):
        check_method(method)


def test_training_finds_weights_channels_last_and_draws_do_too():
    seen = []

    class Looks(ByView):
        def budget(self, workload):
            return Budget(steps=2)

        def prune(self, task):
            weight = task.layers[0].weight
            task.train(2, Hooks(after_step=lambda step: seen.append(weight.is_contiguous())))
            seen.append(weight.is_contiguous())
            kept = super().prune(task)
            seen.append(weight.is_contiguous())
            return kept

    small.prune(Looks(), "resnet20", placed("resnet20"), steps=2)
    assert seen == [False, False, True, False]


def test_how_weights_are_laid_out_changes_no_bit(monkeypatch):
    """Scores with gradients, a reconstruction, and draws after scores."""
    for method in ("taylor", "thinet", "lottery-random-reinit"):
        found = []
        for lay_out in (task._hand_out, lambda model: None):
            monkeypatch.setattr(task, "_hand_out", lay_out)
            pruned = small.prune(method, "resnet20", placed("resnet20"))
            found.append((pruned.answer, conduct.digest(pruned.model)))
        monkeypatch.undo()
        assert found[0] == found[1], method


class TwoRounds(TrainedMethod):
    """Trains twice, each time for an epoch and a half: as methods do that prune in rounds."""

    def budget(self, workload):
        return Budget(steps=8)

    def prune(self, task):
        task.train(4)
        task.train(4, Hooks())
        return {layer.name: task.keep_highest(layer, L1().score(layer, task)) for layer in task.layers}


def test_each_point_of_a_curve_knows_its_first_step():
    # 40 images in batches of 16: three steps an epoch.
    task = small.prune(TwoRounds(), "lenet5", steps=8).task
    assert task.steps_per_epoch == 3 and len(task.history.test_accuracy) == 4
    assert task.epoch_starts == [0, 3, 4, 7]


def rounds(**told):
    """A prune run of two trainings of four steps, three to an epoch; the rate falls at step 5."""
    spec = run_spec("prune", method="l1", ratio=0.5, recipe=Recipe(steps=8, lr="0:0.01,5:0.001", batch=40))
    curves = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy_curve", "test_loss")
    values = {name: [50.0, 60.0, 70.0, 80.0] for name in (*curves, "test_accuracy")}
    return run_record(spec, optimiser_steps=8, learning_rates=[(0.01, 5), (0.001, 3)], **values, **told)


def test_the_rate_of_each_point_is_that_of_its_first_step():
    told = rounds(epoch_starts=[0, 3, 4, 7])
    assert [row["learning_rate"] for row in frames._curves(told, {})] == [0.01, 0.01, 0.01, 0.001]
    # The third point's epoch is the steps 4 to 6: its second one has the lower rate.
    assert results._curve(told).rates == [(0.0, 0.01), (pytest.approx(2 + 1 / 3), 0.001)]
    # Records of before did not tell: their curves are read, without a rate that would be wrong.
    assert [row["learning_rate"] for row in frames._curves(rounds(), {})] == [None] * 4


@pytest.mark.parametrize(("ratio", "stay"), [(0.5, 168), (0.9, 33), (0.98, 9), (0.995, 9)])
def test_a_share_of_all_filters_leaves_one_in_each_layer(ratio, stay):
    workload = small.WORKLOADS["resnet20"].model_copy(update={"ratios": (ratio,), "operating_point": "share"})

    class Everywhere(L1):
        scope = "global"

    # Of 336 filters in nine layers: at 0.98 six would be left.
    answer = small.prune(Everywhere(), "resnet20", ratio=ratio, workload=workload).answer
    assert sum(map(len, answer.kept.values())) == stay
