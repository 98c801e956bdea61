"""What the page says about methods and their authors' code, in numbers."""

import copy
import math
from pathlib import Path

import pytest
import small
import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.method import cards
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.growing import GrowingPenalty
from pruneaudit.pruning.orthogonality import convolutional_orthogonality

CATALOG = Catalog()
TOLD = cards.deviations(CATALOG)


def test_the_page_tells_them_all_of_methods_that_there_are():
    assert set(TOLD) <= set(CATALOG.methods)
    page = (Path(__file__).resolve().parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    assert all(f"- Beside the authors' code: {text}" in page for text in TOLD.values())


def test_gregs_penalty_is_one_increment_behind():
    """The authors add the increment before they use the penalty, here it is used first."""
    assert all("(k + 1)·Δ, here k·Δ" in TOLD[name] for name in ("greg-1", "greg-2"))
    ours = GrowingPenalty(steps=1100)
    theirs, penalty = [], 0.0
    for step in range(1000):
        if step % ours.every == 0:
            penalty = min(penalty + 1 / 1000, 1.0)
        theirs.append(penalty)
    assert [ours.value(step + 1) for step in range(999)] == pytest.approx(theirs[:-1], abs=1e-13)
    assert theirs[0] - ours.value(0) == pytest.approx(1 / 1000)


def test_sfp_trains_all_filters_in_its_first_epoch(monkeypatch):
    """The authors' code has zeroed some before."""
    assert "zeroes filters before the first epoch" in TOLD["sfp"]
    zeros = []
    train = PruningTask.train

    def watched(task, *arguments, hooks=None, **options):
        soften = hooks.after_step

        def look(step):
            zeros.append(sum(int((layer.weight.flatten(1).abs().sum(1) == 0).sum()) for layer in task.layers))
            soften(step)

        hooks.after_step = look
        train(task, *arguments, hooks=hooks, **options)

    monkeypatch.setattr(PruningTask, "train", watched)
    small.prune("sfp", "lenet5", steps=6)  # three steps an epoch
    assert zeros[:3] == [0, 0, 0] and len(zeros) == 6


def test_activations_are_those_of_eval_mode():
    """ShrinkBench leaves the network in training mode: another order of weights, and other running statistics."""
    dense = small.network("resnet20")
    ours = small.prune("activation-layer", "resnet20", dense, ratio=0.9)
    assert all(torch.equal(tensor, ours.model.state_dict()[name]) for name, tensor in dense.state_dict().items())

    class InTraining(type(CATALOG.method("activation-layer").create())):
        def prepare(self, task):
            task.model.train()
            super().prepare(task)

    theirs = small.prune(InTraining(), "resnet20", dense, ratio=0.9)
    pairs = [(mask, theirs.answer.masks[name]) for name, mask in ours.answer.masks.items()]
    differ = sum(int((one != other).sum()) for one, other in pairs) / sum(one.numel() for one, _ in pairs)
    assert differ > 0.02, "of 0.2 at most; the page's number is of a trained network"
    assert "27,898" in TOLD["activation-layer"]
    assert any(not torch.equal(tensor, theirs.model.state_dict()[name]) for name, tensor in dense.state_dict().items())


def test_scratch_b_counts_convolutions_and_linear_layers_and_the_authors_more():
    workload = CATALOG.workload("resnet56-cifar10")
    dense, pruned = shapes.dense_network(workload), shapes.network(workload, shapes.widths_at(workload, 0.9))

    def operations(network, everything):
        """Multiplications; of the authors' counter also biases and a multiply-add for each normalised value."""
        found = []

        def count(module, inputs, output):
            if isinstance(module, nn.Conv2d):
                found.append(module.weight.numel() * output.shape[2:].numel())
            elif isinstance(module, nn.Linear):
                found.append(module.weight.numel() + everything * module.bias.numel())
            elif isinstance(module, nn.BatchNorm2d) and everything:
                found.append(output.numel())

        network = copy.deepcopy(network).eval()
        for module in network.modules():
            module.register_forward_hook(count)
        network(shapes.example(workload))
        return sum(found)

    epochs = [math.floor(200 * operations(dense, more) / operations(pruned, more)) for more in (False, True)]
    speedup = shapes.speedup(workload, 0.9)
    assert epochs == [CATALOG.method("scratch-b").create().recipe(workload, speedup).epochs, 2263] == [2315, 2263]
    assert "2,263 epochs there where it is 2,315 here" in TOLD["scratch-b"]


SINGLE = ["bn-scale", "bn-scale-global", "group-hessian", "group-l2", "group-l2-global", "hessian", "hessian-global"]
SINGLE += ["l2", "l2-global", "lamp", "lamp-layer"]


def test_scores_of_torch_pruning_are_of_single_precision(monkeypatch):
    seen = {}
    checked = PruningTask._checked

    def look(task, layer, scores):
        single = torch.equal(scores.double(), scores.float().double())
        seen[task._method] = seen.get(task._method, True) and single
        return checked(task, layer, scores)

    monkeypatch.setattr(PruningTask, "_checked", look)
    quick = [name for name in SINGLE if "hessian" not in name]
    for method in [*quick, "l1", "fpgm", "magnitude-layer"]:
        small.prune(method, "resnet20")
    assert seen == dict.fromkeys(quick, True) | {"l1": False, "fpgm": False, "magnitude-layer": False}
    assert all("float32" in TOLD[name] for name in SINGLE)


def test_the_penalty_of_a_convolution_is_that_of_its_matrix_and_ocnns_leaves_overlaps_out():
    """Rows of the convolution's matrix around one placement, against all that it overlaps with."""
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    columns = F.conv_transpose2d(torch.eye(8, dtype=torch.float64)[:, :, None, None], weight, padding=0)
    room = F.pad(columns, (3, 3, 3, 3))  # one placement of each filter, in the middle
    gram = F.conv2d(room, weight)  # its product with every placement
    gram[:, :, 3, 3] -= torch.eye(8)
    matrix = float(gram.norm())
    ours = float(convolutional_orthogonality(weight[None], (1, 1)))
    assert ours == pytest.approx(matrix, rel=1e-12)
    theirs = F.conv2d(weight, weight, padding=1)
    theirs[:, :, 1, 1] -= torch.eye(8)
    assert 0.8 < float(theirs.norm()) / ours < 0.95, "513 of 587 is 0.87"
    assert "513 there where it is 587 here" in TOLD["orthconv-l1"]
