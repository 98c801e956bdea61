"""Pruners of torch-pruning as methods: what their own step removes is what the method answers."""

import copy
import warnings

import pytest
import torch
from builders import catalog
from torch_pruning import importance, pruner

from pruneaudit import TorchPruner, check_method
from pruneaudit.catalog.discovery import MethodSource
from pruneaudit.errors import MethodError
from pruneaudit.method.answers import decide
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.streams import isolated
from pruneaudit.training.metering import Meter
from pruneaudit.workloads.data import load
from pruneaudit.workloads.recipes import Recipe

ROOT_OF_README = """\
import torch_pruning
from pruneaudit import TorchPruner


class Magnitude(TorchPruner):
    \"\"\"Smallest L2 norm of the group first, as in torch-pruning's README.\"\"\"

    pruner = torch_pruning.pruner.MagnitudePruner
    options = {"importance": torch_pruning.importance.MagnitudeImportance(p=2)}
"""


class Magnitude(TorchPruner):
    """Smallest L2 norm of coupled weights first."""

    pruner = pruner.MagnitudePruner
    options = {"importance": importance.MagnitudeImportance(p=2)}


class Slimming(TorchPruner):
    """Sparse scales of normalisation, then one threshold over them."""

    pruner = pruner.BNScalePruner
    options = {"importance": importance.BNScaleImportance(), "global_pruning": True, "reg": 1e-3}
    trains = True


class Drawn(TorchPruner):
    """Random scores, one threshold."""

    pruner = pruner.MagnitudePruner
    options = {"importance": importance.RandomImportance(), "global_pruning": True}


class Taylor(TorchPruner):
    """First-order Taylor expansion of the loss."""

    pruner = pruner.MagnitudePruner
    options = {"importance": importance.GroupTaylorImportance()}
    images = 8


def job(kind, workload="resnet20-digits", ratio=0.5, steps=0):
    """A task of a method on a fresh network, its meter open."""
    workload = catalog().workload(workload)
    model = shapes.dense_network(workload)
    with isolated(3):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.05)
    dataset = load(workload.data)
    layers = prunable_layers(model, dataset.example(), workload.prunable, workload.skip)
    meter = Meter(model, example=dataset.example())
    recipe = Recipe(steps=steps, lr="0:0.01", batch=16)
    target = shapes.target(workload, ratio, kind.granularity, kind.scope)
    task = PruningTask(model, layers, workload, ratio, recipe, dataset, 0, meter, "mine", target=target)
    return task, meter


def answer(kind, **options):
    task, meter = job(kind, **options)
    with meter:
        return decide(kind(), task).kept, task


def test_it_answers_what_the_pruners_own_step_removes():
    kept, task = answer(Magnitude)
    # The README's flow on a copy, at counts that its ratio reaches.
    model = copy.deepcopy(task.model)
    modules = dict(model.named_modules())
    free = {modules[layer.name] for layer in task.layers}
    ignored = [m for m in modules.values() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear) and m not in free]
    pruner.MagnitudePruner(
        model, task._dataset.example(), importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=ignored
    ).step()
    assert kept and any(len(indices) < task.target.stay[name] * 2 for name, indices in kept.items())
    for name, indices in kept.items():
        assert torch.equal(modules[name].weight, _rows(task, name, indices, modules[name])), name


def _rows(task, name, indices, small):
    """Weights of a layer whose filters ``indices`` stay, with as many inputs as the small one has."""
    layer = next(layer for layer in task.layers if layer.name == name)
    rows = layer.module.weight[indices]
    if rows.shape == small.weight.shape:
        return rows
    found = task.inputs_left({**{unit.name: range(unit.channels) for unit in task.prunable}, **_kept_of(task)})
    return rows[:, found[layer.module]]


def _kept_of(task):
    return decide(Magnitude(), task).kept


@pytest.mark.parametrize("kind", [Magnitude, Drawn, Taylor, Slimming], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_it_meets_the_target_of_every_method(kind, ratio):
    task, meter = job(kind, ratio=ratio, steps=3 if kind.trains else 0)
    before = torch.random.get_rng_state()
    with meter:
        kept = decide(kind(), task).kept
    assert kind.scope == ("global" if "global_pruning" in kind.options else "layerwise")
    counts = {name: len(indices) for name, indices in kept.items()}
    if kind.scope == "layerwise":
        assert counts == dict(task.target.stay)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_the_regulariser_acts_in_metered_training():
    strong = type("Strong", (Slimming,), {"options": {**Slimming.options, "reg": 0.1}})
    weak, shrunk = (answer(kind, steps=3)[1] for kind in (Slimming, strong))
    scales = [
        sum(float(m.weight.detach().abs().sum()) for m in task.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        for task in (weak, shrunk)
    ]
    assert len(shrunk.epoch_starts) == 1 and scales[1] < 0.99 * scales[0]


def test_the_readmes_flow_keeps_the_contract(tmp_path):
    check_method(MethodSource("magnitude", path=write_whole(tmp_path, ROOT_OF_README)).cls)


def write_whole(folder, text):
    path = folder / "magnitude.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"options": {"importance": importance.MagnitudeImportance(), "pruning_ratio": 0.3}}, "leave 'pruning_ratio'"),
        ({"options": {}}, "options need an importance"),
        ({"trains": True}, "this pruner has no regulariser; leave 'trains' out"),
        ({"pruner": dict}, "takes classes of torch-pruning only"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(more, told):
    kind = type("Mine", (Magnitude,), more)
    with warnings.catch_warnings(), pytest.raises(MethodError, match=told) as found:
        warnings.simplefilter("error")
        answer(kind)
    assert "\n" not in str(found.value)
