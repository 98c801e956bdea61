"""Singular values of the Jacobian, and trainability accuracy."""

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import changed, evidence, store
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import AuditError
from pruneaudit.ledger.records import Jacobian
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure import trainability
from pruneaudit.measure.trainability import (
    SAMPLES,
    comparable_trainability,
    jacobian,
    singular_values,
    takes_batch_statistics,
    trainability_accuracy,
)
from pruneaudit.report.results import gather_ledger
from pruneaudit.report.tables import trainability_table
from pruneaudit.report.writer import markdown_sections
from pruneaudit.training import grouped
from pruneaudit.training.grouped import jacobians
from pruneaudit.workloads.data import Dataset, Part
from pruneaudit.workloads.models import build
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_network(*widths, dtype=torch.float64):
    """A network without activations: its Jacobian is the product of its weights, whatever the image."""
    layers = [nn.Linear(before, after) for before, after in pairwise(widths)]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weight.copy_(drawn(*layer.weight.shape, seed=number) / layer.in_features**0.5)
    return nn.Sequential(nn.Flatten(), *layers).to(dtype)


def product(model):
    """The Jacobian of a linear network, from its weights alone."""
    matrix = model[1].weight.detach().double()
    for layer in list(model)[2:]:
        matrix = layer.weight.detach().double() @ matrix
    return matrix


def trained(name, channels, side):
    """An architecture whose batch norms have seen data, so that eval and training mode differ."""
    torch.manual_seed(0)
    model = build(name, channels=channels, classes=10).double()
    with torch.no_grad():
        for number in range(3):
            model(2 + 3 * drawn(8, channels, side, side, seed=number))
    return model


def pictures(images, side=8, channels=1, mean=0.3, std=0.4, seed=0):
    """A dataset of random pictures whose three splits differ."""

    def part(number):
        generator = torch.Generator().manual_seed(seed + number)
        pixels = torch.randint(0, 256, (images, side, side, channels), generator=generator, dtype=torch.uint8)
        return Part(pixels, torch.arange(images) % 10)

    config = DataConfig(name="pictures", mean=(mean,) * channels, std=(std,) * channels, pad=1, flip=True)
    return Dataset(config, 10, part(0), part(1), part(2), "pictures")


class Mixing(nn.Module):
    """A network that keeps notes: convolution, batch norm, dropout and a layer that is not trained."""

    def __init__(self, fails=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen_norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 3)
        self.linear.bias.requires_grad_(False)
        self.fails = fails
        self.seen = []
        self.double()

    def forward(self, images):
        self.seen.append(
            (
                {module.training for module in self.modules()},
                {parameter.requires_grad for parameter in self.parameters()},
            )
        )
        if self.fails:
            raise RuntimeError("it broke")
        maps = self.frozen_norm(self.norm(self.conv(images)))
        return self.linear(self.dropout(torch.tanh(maps).mean(dim=(2, 3))))


def test_importing_needs_no_torch():
    code = "import sys, pruneaudit.measure.trainability; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_linear_network_gives_the_singular_values_of_its_weights(training, scale):
    model = linear_network(48, 30, 20, 10).train(training)
    expected = torch.linalg.svdvals(product(model))
    values = singular_values(model, scale * drawn(5, 3, 4, 4))
    assert values.dtype == torch.float64 and values.shape == (5, 10)
    torch.testing.assert_close(values, expected.expand(5, 10), rtol=1e-10, atol=0)


def test_more_classes_than_pixels_give_as_many_values_as_pixels():
    model = linear_network(4, 30, 10)
    values = singular_values(model, drawn(3, 1, 2, 2))
    assert values.shape == (3, 4)
    torch.testing.assert_close(values, torch.linalg.svdvals(product(model)).expand(3, 4), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixels", [6, 64], ids=["wide", "tall"])
def test_directions_that_a_narrow_layer_lost_are_exactly_zero(dtype, pixels):
    model = linear_network(pixels, 30, 4, 10, dtype=dtype)
    values = singular_values(model, drawn(3, pixels).to(dtype))
    assert values.shape == (3, min(10, pixels))
    assert (values[:, :4] > 0.01).all()
    assert torch.equal(values[:, 4:], torch.zeros(3, min(10, pixels) - 4, dtype=torch.float64))


@pytest.mark.parametrize(("name", "side"), [("lenet5", 32), ("resnet20", 8)])
def test_agrees_with_forward_and_backward_by_torch_func(name, side):
    model = trained(name, 1, side)
    images = drawn(3, 1, side, side, seed=9)
    values = singular_values(model, images)
    model.eval()
    for image, found in zip(images, values, strict=True):
        matrix = torch.func.jacrev(lambda pixels: model(pixels[None])[0])(image).flatten(1)
        expected = torch.linalg.svdvals(matrix.detach())
        assert expected[-1] > 0
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert not torch.allclose(values[0], values[1], rtol=1e-3)


def test_values_of_an_image_do_not_depend_on_the_other_images():
    model = trained("resnet20", 1, 8).train()
    images = drawn(6, 1, 8, 8, seed=9)
    together = singular_values(model, images)
    others = singular_values(model, torch.cat([images[:2], 10 * images[2:]]))
    torch.testing.assert_close(others[:2], together[:2], rtol=1e-10, atol=0)
    for number in range(6):
        torch.testing.assert_close(
            singular_values(model, images[number : number + 1])[0], together[number], rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("fails", [False, True])
def test_measures_in_eval_mode_and_leaves_the_model_as_it_was(fails):
    model = Mixing(fails=fails).train()
    model.frozen_norm.eval()
    model.conv.weight.grad = drawn(*model.conv.weight.shape)
    gradient = model.conv.weight.grad.clone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = drawn(4, 1, 5, 5)
    if fails:
        with pytest.raises(RuntimeError, match="it broke"):
            singular_values(model, images)
    else:
        singular_values(model, images)
    assert model.seen == [({False}, {False})]
    assert [module for module in model.modules() if not module.training] == [model.frozen_norm]
    held = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert held == ["linear.bias"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.conv.weight.grad, gradient)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "conv.weight")
    assert not images.requires_grad and images.grad is None


def test_in_training_mode_a_row_is_the_gradient_of_the_whole_batch():
    """As the release of TPP computes it, by torch.func: the sum of a batch's logits by each of its images."""
    model, images = trained("resnet20", 1, 8), drawn(6, 1, 8, 8)
    reference = copy.deepcopy(model).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False  # torch.func allows no change in place
            module.running_mean = module.running_var = None
    matrix = torch.func.jacrev(lambda batch: reference(batch).sum(dim=0))(images)  # [C, N, 1, 8, 8]
    expected = torch.linalg.svdvals(matrix.transpose(0, 1).flatten(2))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    found = singular_values(model, images, batch_statistics=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, singular_values(model, images), rtol=0.01)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_network_without_batch_norm_has_one_mode():
    model, images = trained("lenet5", 1, 32), drawn(3, 1, 32, 32)
    assert not takes_batch_statistics(model) and takes_batch_statistics(trained("resnet20", 1, 8))
    assert torch.equal(singular_values(model, images, batch_statistics=True), singular_values(model, images))


def test_the_report_shows_both_modes_and_the_accuracy_right_after_pruning_where_they_were_measured(tmp_path):
    def tables(name, accuracy, mode):
        ledger = Ledger(tmp_path / name)
        one = evidence("l1")
        prune = changed(one.prune, jacobian_train=mode, accuracy=12.5)
        base = changed(one.base, jacobian_train=mode)
        cell = one.cell.model_copy(update={"pruned_value": accuracy})
        store(ledger, replace(one, cell=cell, prune=prune, base=base))
        results = gather_ledger(Catalog(), ledger)
        text = "\n".join(text for _, text in markdown_sections(results))
        return trainability_table(results, "lenet5-digits", ()), text, results.cells[0]

    (header, rows), text, cell = tables("new", 12.5, Jacobian(mean=0.75, std=0.1, condition=None, samples=64))
    assert header[3:] == [
        "pruned", "JSV base", "JSV pruned", "JSV end", "JSV base (train)", "JSV pruned (train)", "TA"
    ]  # fmt: skip
    assert rows[0][3:] == ["12.50", "1.2", "1.2", "1.2", "0.75", "0.75", "75.00"]
    assert "stale running statistics" in text
    assert cell["pruned_value"] == 12.5 and cell["jsv"]["pruned_train"] == 0.75
    (header, rows), text, cell = tables("old", None, None)
    assert header[3:] == ["JSV base", "JSV pruned", "JSV end", "TA"] and "(train)" not in text
    assert "pruned_value" not in cell and set(cell["jsv"]) == {"base", "pruned", "end"}


def test_works_where_gradients_are_off():
    model, images = Mixing(), drawn(4, 1, 5, 5)
    expected = singular_values(model, images)
    with torch.no_grad():
        values = singular_values(model, images)
        assert not torch.is_grad_enabled()
    assert torch.equal(values, expected) and not values.requires_grad


@settings(deadline=None, max_examples=30)
@given(
    factor=st.floats(1e-3, 1e3).flatmap(lambda size: st.sampled_from([size, -size])),
    seed=st.integers(0, 2**16),
    name=st.sampled_from(["lenet5", "linear"]),
)
def test_scaling_the_last_layer_scales_all_values(factor, seed, name):
    torch.manual_seed(seed)
    if name == "linear":
        model, images = linear_network(16, 12, 7), drawn(2, 16, seed=seed)
    else:
        model, images = build("lenet5", channels=1, classes=7).double(), drawn(2, 1, 32, 32, seed=seed)
    before = singular_values(model, images)
    last = list(model.modules())[-1]
    with torch.no_grad():
        last.weight.mul_(factor)
    # Rounding in the products of a square: relative to the largest value of an image.
    after = singular_values(model, images)
    worst = ((after - abs(factor) * before).abs() / after[:, :1]).max()
    assert worst < 1e-9


def test_images_without_a_finite_jacobian_are_marked_and_the_others_measured():
    model = linear_network(4, 3, 2)
    broken = nn.Sequential(Reciprocal(), *model)
    images = torch.tensor([[1.0, 2, 3, 4], [0, 1, 2, 3], [4, 3, 2, 1]], dtype=torch.float64)
    values = singular_values(broken, images)
    assert values.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]


class Reciprocal(nn.Module):
    def forward(self, images):
        return 1 / images


def test_statistics_are_those_of_numpy():
    dataset = pictures(100)
    model = trained("resnet20", 1, 8)
    result = jacobian(model, dataset, samples=70)
    images = (dataset.train.images[:70].double().permute(0, 3, 1, 2) / 255 - 0.3) / 0.4
    values = singular_values(model, images).numpy()
    assert result.samples == 70
    assert result.mean == pytest.approx(np.mean(values), rel=1e-9)
    assert result.std == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert result.condition == pytest.approx(np.mean(values.max(axis=1) / values.min(axis=1)), rel=1e-9)


def test_statistics_of_a_hand_made_network():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 6.0], [-2.0, 0.0]]))
    result = jacobian(model, pictures(5, side=1, channels=2))
    assert result.mean == pytest.approx(4, rel=1e-6)
    assert result.std == pytest.approx(math.sqrt(10 * 4 / 9), rel=1e-6)
    assert result.condition == pytest.approx(3, rel=1e-6)
    assert all(type(value) is float for value in (result.mean, result.std, result.condition))
    assert type(result.samples) is int
    assert json.loads(result.model_dump_json()) == result.model_dump()


def test_the_images_are_fixed_and_never_augmented():
    dataset, model = pictures(80), trained("resnet20", 1, 8)
    torch.manual_seed(1)
    first = jacobian(model, dataset)
    torch.manual_seed(2)
    assert jacobian(model, dataset) == first
    later = Part(dataset.train.images.clone(), dataset.train.labels)
    later.images[SAMPLES:] = 0
    assert jacobian(model, Dataset(dataset.config, 10, later, later, later, "later")) == first
    later.images[0] = 255 - later.images[0]
    assert jacobian(model, Dataset(dataset.config, 10, later, later, later, "later")) != first


@pytest.mark.parametrize(("images", "samples", "taken"), [(5, 64, 5), (70, 64, 64), (70, 3, 3), (150, 130, 130)])
def test_takes_as_many_images_as_asked_and_there_are(images, samples, taken, monkeypatch):
    batches = []
    monkeypatch.setattr(
        trainability,
        "singular_values",
        lambda model, images, mode: batches.append(images) or drawn(len(images), 2).abs(),
    )
    dataset = pictures(images)
    model = nn.Linear(1, 1).double()
    assert jacobian(model, dataset, samples=samples).samples == taken
    assert max(map(len, batches)) <= 64
    assert torch.equal(torch.cat(batches), dataset.normalise(dataset.train.images[:taken], torch.float64))
    assert SAMPLES == 64


def test_a_rank_deficient_network_has_no_condition_number():
    result = jacobian(linear_network(64, 30, 4, 10), pictures(5))
    assert result.condition is None and result.mean > 0


def test_a_network_without_signal_has_singular_values_of_zero():
    model = linear_network(64, 30, 10)
    nn.init.zeros_(model[1].weight)
    result = jacobian(model, pictures(5))
    assert (result.mean, result.std, result.condition) == (0.0, 0.0, None)


def test_one_single_value_does_not_scatter():
    result = jacobian(linear_network(64, 1), pictures(1))
    assert (result.std, result.condition, result.samples) == (0.0, 1.0, 1)


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e200])
def test_a_jacobian_that_is_not_finite_is_refused(weight):
    model = linear_network(64, 10)
    with torch.no_grad():
        model[1].weight[3, 5] = weight
    with pytest.raises(AuditError, match="the Jacobian is not finite"):
        jacobian(model, pictures(5))


def test_no_image_is_refused():
    with pytest.raises(AuditError, match="at least one training image"):
        jacobian(linear_network(64, 10), pictures(3), samples=0)


def networks(count, classes=4):
    """Small networks of one shape with weights of their own, on pictures of 8 × 8."""
    torch.manual_seed(0)
    return [
        nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, classes)
        ).double()
        for _ in range(count)
    ]


@settings(deadline=None, max_examples=10)
@given(count=st.integers(1, 4), images=st.integers(1, 70), samples=st.integers(1, 70))
def test_together_networks_have_the_jacobians_that_each_has_alone(count, images, samples):
    models, dataset = networks(count), pictures(images)
    for model, found in zip(models, jacobians(models, dataset, samples, together=True), strict=True):
        alone = jacobian(model, dataset, samples)
        assert found.samples == alone.samples == min(images, samples)
        for value, expected in zip(found.model_dump().values(), alone.model_dump().values(), strict=True):
            assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("together", [True, False])
def test_a_network_without_a_finite_jacobian_costs_itself_alone(together):
    models, dataset = networks(3), pictures(5)
    with torch.no_grad():
        models[1][0].weight[0, 0, 0, 0] = math.nan
    first, broken, last = jacobians(models, dataset, together=together)
    assert isinstance(broken, AuditError) and str(broken) == "the Jacobian is not finite"
    for model, found in ((models[0], first), (models[2], last)):
        assert found.mean == pytest.approx(jacobian(model, dataset).mean, rel=1e-10)


def test_unlike_networks_are_measured_one_by_one():
    models, dataset = [*networks(1), *networks(1, classes=3)], pictures(5)
    assert jacobians(models, dataset, together=True) == [jacobian(model, dataset) for model in models]


def test_on_a_cpu_what_is_measured_beside_a_network_does_not_change_a_bit():
    models, dataset = networks(3), pictures(5)
    assert jacobians(models, dataset) == [jacobian(model, dataset) for model in models]


def recipe(lr, epochs=6, **settings):
    return Recipe(epochs=epochs, lr=lr, batch=64, **settings)


CURVE = [50.0, 60.0, 73.0, 80.0, 81.0, 82.0]


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("0:1e-2,3:1e-3", 6, 61.0),
        ("0:1e-2,3:1e-3,5:1e-4", 6, 61.0),
        ("0:1e-2,1:1e-3", 6, 50.0),
        ("0:1e-2", 6, 71.0),
        ("0:1e-2,9:1e-3", 6, 71.0),
        ("cosine:1e-2:1e-4", 6, None),
    ],
)
def test_trainability_accuracy_is_the_mean_over_the_first_stage(schedule, epochs, expected):
    assert trainability_accuracy(CURVE, recipe(schedule, epochs)) == expected


def test_trainability_accuracy_of_an_unfinished_stage_is_none():
    stepped, constant = recipe("0:1e-2,3:1e-3"), recipe("0:1e-2")
    assert trainability_accuracy(CURVE[:3], stepped) == 61.0
    assert trainability_accuracy(CURVE[:2], stepped) is None
    assert trainability_accuracy(CURVE[:5], constant) is None
    assert trainability_accuracy([], constant) is None


def test_trainability_accuracy_of_a_recipe_in_steps_is_none():
    assert trainability_accuracy(CURVE, Recipe(steps=6, lr="0:1e-2,3:1e-3", batch=64)) is None


def test_trainability_is_compared_under_one_schedule_only():
    reference = recipe("0:1e-2,3:1e-3")
    assert comparable_trainability(reference, recipe("0:0.01,3:0.001"))
    assert comparable_trainability(reference, recipe("0:1e-2,3:1e-3", weight_decay=1e-4))
    for other in (
        recipe("0:1e-3,3:1e-4"),
        recipe("0:1e-2,4:1e-3"),
        recipe("0:1e-2,3:1e-3", epochs=7),
        recipe("cosine:1e-2:1e-3"),
        Recipe(steps=6, lr="0:1e-2,3:1e-3", batch=64),
    ):
        assert not comparable_trainability(reference, other)
        assert not comparable_trainability(other, reference)
    part = Recipe(steps=6, lr="0:1e-2,3:1e-3", batch=64, start=2, span=8)
    assert not comparable_trainability(part, part.model_copy(update={"start": 0}))
    assert not comparable_trainability(part, part.model_copy(update={"span": 9}))


@pytest.mark.parametrize("together", [False, True])
def test_a_network_that_cannot_be_measured_costs_no_other(monkeypatch, together):
    def broken(values):
        if not calls:
            calls.append(values)
            raise RuntimeError("no convergence")
        return real(values)

    calls, real = [], grouped.summary
    for module in (grouped, trainability):
        monkeypatch.setattr(module, "summary", broken)
    first, second = jacobians(networks(2), pictures(5), together=together)
    assert str(first) == "no convergence" and isinstance(second, Jacobian)
