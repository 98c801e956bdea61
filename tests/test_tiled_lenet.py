"""LeNet-5 in tiles against the plain trainer: maps that are large for the cache, so that batches pass in blocks."""

import dataclasses
import importlib.util
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trainers import assert_goes_on, assert_same, fit, needs_numba

from pruneaudit.errors import ConfigError
from pruneaudit.measure.accuracy import evaluate
from pruneaudit.streams import generator
from pruneaudit.training import tiled, tiled_steps
from pruneaudit.training.loop import DivergedError, Hooks, Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place
from pruneaudit.workloads.data import Dataset, Part, load
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.models.lenet import LeNet5
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

DENSE = (6, 16, 120, 84)
# 100 training images in batches of 32: four steps in an epoch, the last one with 4 images.
RECIPE = Recipe(epochs=5, lr="0:0.02,2:0.005", batch=32, momentum=0.9, weight_decay=5e-4)


def digits(train=100, held_out=30):
    """The first digits, whose borders are flat: many equal pixels in a pooling window."""
    config = DataConfig(name="digits", size=32, mean=(0.3054,), std=(0.3763,), pad=4, flip=True)
    full = load(config)
    return dataclasses.replace(
        full, train=full.train.first(train), validation=full.validation.first(held_out), test=full.test.first(held_out)
    )


def noise(channels, train):
    """Random images of any number of channels."""
    draw = generator(channels, "noise")

    def part(count):
        images = torch.randint(0, 256, (count, 32, 32, channels), generator=draw, dtype=torch.uint8)
        return Part(images, torch.randint(0, 10, (count,), generator=draw))

    config = DataConfig(name="digits", mean=(0.5,) * channels, std=(0.3,) * channels)
    return Dataset(config, 10, part(train), part(5), part(5), "")


def network(widths=DENSE, precision="fp64", channels=1, seed=0):
    """A LeNet-5 of some widths, as pruning leaves it."""
    model = LeNet5(channels)
    one, two, three, four = widths
    model.conv1, model.conv2 = nn.Conv2d(channels, one, 5), nn.Conv2d(one, two, 5)
    model.conv3, model.fc1, model.fc2 = nn.Conv2d(two, three, 5), nn.Linear(three, four), nn.Linear(four, 10)
    model = model.double()
    draw = generator(seed, "test")
    initialise(model, draw)
    with torch.no_grad():
        for module in (model.conv1, model.conv2, model.conv3, model.fc1, model.fc2):
            module.bias.uniform_(-0.2, 0.2, generator=draw)
    return place(model, "cpu", precision)


# Against torch


@needs_numba
@pytest.mark.parametrize(
    ("widths", "change"),
    [
        (DENSE, {}),
        (DENSE, {"label_smoothing": 0.1, "nesterov": True}),
        ((3, 8, 12, 84), {"momentum": 0.0}),
        ((1, 1, 1, 84), {}),
        ((5, 1, 17, 3), {"weight_decay": 0.0, "label_smoothing": 0.2}),
        ((1, 16, 120, 84), {"epochs": None, "steps": 22, "lr": "0:0.02,7:0.005"}),
    ],
    ids=str,
)
def test_training_equals_torch_in_float64(widths, change):
    dataset, recipe, model = digits(), RECIPE.model_copy(update=change), network(widths)
    plain, ours = (fit(backend, model, dataset, recipe) for backend in ("torch", "tiled"))
    assert ours.meter.consumption.optimiser_steps >= 20
    assert_same(ours, plain)
    assert not torch.equal(ours.model.conv1.weight, model.conv1.weight)


@needs_numba
def test_masked_weights_stay_zero():
    model, draw = network(), generator(1, "masks")
    masks = {
        name: torch.rand(model.get_parameter(f"{name}.weight").shape, generator=draw) < 0.3
        for name in ("conv1", "conv3", "fc1")
    }
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(f"{name}.weight").mul_(mask)
    plain, ours = (fit(backend, model, digits(), RECIPE, masks=masks) for backend in ("torch", "tiled"))
    assert_same(ours, plain)
    assert ours.history.nonzero == [sum(int(mask.sum()) for mask in masks.values())] * 5
    for name, mask in masks.items():
        assert not ours.model.get_parameter(f"{name}.weight")[~mask].any()


@needs_numba
def test_a_step_equals_torch_in_float32():
    recipe, dataset, model = RECIPE.model_copy(update={"epochs": None, "steps": 1}), digits(), network(precision="fp32")
    plain, ours = (fit(backend, model, dataset, recipe, "fp32") for backend in ("torch", "tiled"))
    for one, other in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert one.dtype == torch.float32 and one.stride() == other.stride()
        assert float((one - other).detach().abs().max()) <= 1e-6
    assert ours.history.train_loss == pytest.approx(plain.history.train_loss, rel=1e-6)


@needs_numba
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    widths=st.tuples(*(st.integers(1, most) for most in (6, 16, 24, 12))),
    batch=st.integers(1, 20),
    train=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
)
def test_any_widths_and_batches_equal_torch(widths, batch, train, channels):
    recipe = RECIPE.model_copy(update={"epochs": None, "steps": 3, "batch": batch})
    model, dataset = network(widths, channels=channels), noise(channels, train)
    plain, ours = (fit(backend, model, dataset, recipe) for backend in ("torch", "tiled"))
    assert_same(ours, plain)


@needs_numba
def test_evaluations_between_epochs_are_those_of_torch_and_the_last_one_is_torchs_own():
    dataset = digits(held_out=200)
    ours = fit("tiled", network(precision="fp32"), dataset, RECIPE, precision="fp32")
    for part, curve in ((dataset.validation, "validation"), (dataset.test, "test")):
        own = evaluate(ours.model, dataset, part)
        layers = tiled.layers_of(ours.model, dataset, Hooks(), "fp32", RECIPE)
        again = tiled_steps.TiledSteps(ours, layers).score(part)
        assert vars(ours.history)[f"{curve}_accuracy"][-1] == own.accuracy
        assert vars(ours.history)[f"{curve}_loss"][-1] == own.loss
        assert again.loss == pytest.approx(own.loss, rel=1e-5)
        assert (again.correct == own.correct).all() and again.accuracy == own.accuracy


@needs_numba
def test_divergence_is_an_error():
    with pytest.raises(DivergedError, match="in epoch 2 of 5: it diverged"):
        fit("tiled", network(), digits(), RECIPE.model_copy(update={"lr": "0:0.01,1:1e300"}))


# Kill and resume


@needs_numba
@pytest.mark.parametrize(("started", "resumed"), [("torch", "tiled"), ("tiled", "torch"), ("tiled", "tiled")])
def test_a_run_goes_on_with_either_backend(tmp_path, started, resumed):
    assert_goes_on(tmp_path, started, resumed, network, digits(), RECIPE)


# Where it cannot


@needs_numba
def test_labels_without_a_class_are_not_compiled():
    dataset = noise(1, 10)
    dataset.train.labels[3] = 10
    assert "fewer outputs than the data classes" in tiled.layers_of(network(), dataset, Hooks(), "fp64", RECIPE)


def test_without_numba_torch_trains(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = network()
    trainer = Trainer(model, digits(), RECIPE, 0, "retrain", Meter(model), "fp64", backend="tiled")
    trainer.fit()
    assert trainer.backend == "torch" and "pip install 'pruneaudit[compiled]'" in trainer.fallback


def test_an_unknown_backend_is_an_error():
    model = network()
    with pytest.raises(ConfigError, match="tiled"):
        Trainer(model, digits(), RECIPE, 0, "retrain", Meter(model), backend="compield")


SMOKE = ("suite", "-k", "lenet5-digits and s3.2 and r0.5 and not conformance", "--audit-methods", "l1,random")
SMOKE += ("--audit-protocols", "s3.2", "--audit-seeds", "1", "--audit-budget", "smoke")


@needs_numba
def test_a_session_keeps_backends_apart_and_names_them(checkout):
    for backend in ("tiled", "torch"):
        outcome = checkout.pytest(*SMOKE, "--audit-backend", backend)
        assert outcome.code == 0, outcome.text
    records = [json.loads(path.read_text()) for path in (checkout.ledger / "runs").glob("*/record.json")]
    # Base model, two pruned ones and two retrained ones, each by both.
    assert len(records) == len({record["weights_digest"] for record in records}) == 10
    ours = [record for record in records if record["backend"] == "tiled"]
    made_by = {record["stage"]: record["hyper_parameters"].get("steps") for record in ours}
    assert made_by == {"pretrain": "tiled", "prune": None, "retrain": "tiled"}
    assert not any("steps" in record["hyper_parameters"] for record in records if record["backend"] == "torch")
    cells = [json.loads(path.read_text()) for path in (checkout.ledger / "cells").iterdir()]
    assert sorted(cell["labels"] for cell in cells) == [["smoke"]] * 2 + [["smoke", "tiled"]] * 2


def test_without_numba_one_line_says_what_to_install(checkout):
    checkout.write(
        "hidden.py",
        "import importlib.util as util\n_find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'numba' else _find(name, *rest)\n",
    )
    outcome = checkout.pytest(*SMOKE, "--audit-backend", "tiled", "-p", "hidden")
    assert outcome.code == 4
    assert "--audit-backend tiled needs Numba: pip install 'pruneaudit[compiled]'" in outcome.text
    assert not checkout.ledger.exists()


OLDER = """
from pruneaudit.campaign import choosing
from pruneaudit.plugin import session
from pruneaudit.training import loop, tiled_steps

session.RETIRED = choosing.RETIRED = ()
del loop.BACKENDS["compiled"]
"""


@needs_numba
def test_what_an_earlier_backend_made_is_judged_and_nothing_more_is_trained_by_it(checkout):
    refused = checkout.pytest(*SMOKE, "--audit-backend", "compiled")
    assert refused.code == 4 and not checkout.ledger.exists()
    assert "--audit-backend compiled: it trains no more; tiled trains LeNet-5 as fast" in refused.text
    # A ledger as an earlier build would have left it.
    checkout.write("older.py", OLDER)
    made = checkout.pytest(*SMOKE, "--audit-backend", "compiled", "-p", "older")
    assert made.code == 0, made.text
    kept = sorted((path, path.read_bytes()) for path in checkout.ledger.rglob("record.json"))
    (checkout.root / "older.py").unlink()
    for asked in ("auto", "compiled"):
        judged = checkout.pytest(*SMOKE, "--audit-backend", asked, "--audit-from", str(checkout.ledger))
        assert judged.code == 0, judged.text
        page = (checkout.root / "reports/latest/report.md").read_text().replace("\\", "")
        assert "lenet5-digits [smoke, compiled]" in page
    more = checkout.pytest(*SMOKE, "--audit-backend", "auto")
    assert more.code == 1 and "its runs are there by compiled, which trains no more: judge them" in more.text
    assert sorted((path, path.read_bytes()) for path in checkout.ledger.rglob("record.json")) == kept
