"""Networks that are trained in lockstep, against the plain trainer of one."""

import copy
import importlib.util

import pytest
import torch
from plays import brought
from test_tiled_lenet import RECIPE, digits, network, noise
from torch import nn

from pruneaudit.errors import ConfigError
from pruneaudit.measure.accuracy import evaluate
from pruneaudit.pruning import shapes
from pruneaudit.streams import generator
from pruneaudit.training.loop import Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.sweep import Sweep
from pruneaudit.workloads.data import load
from pruneaudit.workloads.models.initialise import initialise

torch.set_num_threads(1)

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="Numba is not installed")
SMALL = RECIPE.model_copy(update={"epochs": 3, "label_smoothing": 0.1})


def alone(model, dataset, recipe, seed):
    model = copy.deepcopy(model)
    with Meter(model) as meter:
        Trainer(model, dataset, recipe, seed, "retrain", meter, "fp64").fit()
    return model


def assert_as_alone(models, dataset, recipe, steps, seed=5):
    """A sweep by these steps leaves the networks and gives the scores that each has alone."""
    wanted = [alone(model, dataset, recipe, seed) for model in models]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    sweep = Sweep(models, dataset, "fp64", recipe)
    assert sweep.steps == steps
    sweep.train(seed, "retrain")
    for model, other, old in zip(models, wanted, before, strict=True):
        for name, tensor in model.state_dict().items():
            assert float((tensor - other.state_dict()[name]).abs().max()) <= 1e-10, name
            assert not torch.equal(tensor, old[name]) or name not in dict(model.named_parameters()), name
    for score, other in zip(sweep.score(dataset.test), wanted, strict=True):
        expected = evaluate(other, dataset, dataset.test, "fp64")
        assert (score.accuracy, score.loss) == (expected.accuracy, pytest.approx(expected.loss, rel=1e-9))
        assert (score.correct == expected.correct.flatten()).all()


def normalised(out=3, seed=0):
    """A small network with a normalisation, whose statistics and counters are delivered, too."""
    model = nn.Sequential(
        nn.Conv2d(1, out, 5, stride=4, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(out, 10),
    ).double()  # fmt: skip
    initialise(model, generator(seed, "weights"))
    return model


@needs_numba
@pytest.mark.parametrize(
    "make",
    [
        lambda: [network((3, 4, 5, 6), seed=seed) for seed in range(3)],
        # Of several forms, which see the same images: each in tiles of its own.
        lambda: [network((3, 4, 5, 6)), network((2, 4, 5, 6)), network((3, 4, 5, 6), seed=2), normalised()],
        lambda: [normalised(seed=seed) for seed in range(2)],
    ],
    ids=["of one form", "of several forms", "normalised"],
)
def test_each_network_gets_the_steps_that_it_would_get_alone(make):
    assert_as_alone(make(), digits(train=70), SMALL, "tiled")


@needs_numba
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_steps_beside_others_have_the_bits_of_the_tiled_trainer_alone(threads):
    """However many threads share them, of which some may be left without a network."""
    widths = [(3, 4, 5, 6), (3, 4, 5, 6), (2, 4, 5, 6)]
    dataset, models = digits(train=70), [network(some, "fp32", seed=seed) for seed, some in enumerate(widths)]
    wanted = []
    for model in copy.deepcopy(models):
        with Meter(model) as meter:
            Trainer(model, dataset, SMALL, 5, "retrain", meter, "fp32", backend="tiled").fit()
        wanted.append(model.state_dict())
    sweep = Sweep(models, dataset, "fp32", SMALL, threads)
    sweep.train(5, "retrain")
    for model, other in zip(models, wanted, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())
    scores = sweep.score(dataset.test)
    assert [score.loss for score in scores] == [
        Sweep([model], dataset, "fp32").score(dataset.test)[0].loss for model in models
    ]


def test_where_one_has_no_tiles_torch_trains_all():
    class Cut(nn.Module):
        """Nothing of tiles is known of its code."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 10)

        def forward(self, images):
            return self.linear(images[:, 0].amax(1))

    other = Cut().double()
    initialise(other, generator(1, "weights"))
    assert_as_alone([network((3, 4, 5, 6)), other], digits(train=70), SMALL, "torch")


@needs_numba
def test_networks_that_are_only_scored_stay_as_they_are():
    dataset, models = noise(1, 30), [network((1, 2, 3, 4), seed=seed) for seed in range(2)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    scores = Sweep(models, dataset, "fp64").score(dataset.train)
    for model, old, score in zip(models, before, scores, strict=True):
        assert score.loss == pytest.approx(evaluate(model, dataset, dataset.train).loss, rel=1e-9)
        assert all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())


def test_what_only_the_plain_loop_does_is_refused():
    with pytest.raises(ConfigError, match="networks of a study cannot train so: its recipe has mixup"):
        Sweep([network()], digits(), "fp64", SMALL.model_copy(update={"mixup": 0.2}))


def test_decoders_get_the_steps_that_they_would_get_alone(tmp_path):
    """AdamW and clipping; every token has a loss."""
    workload = brought(tmp_path).workload("text")
    dataset = load(workload.data)
    recipe = workload.pretrain.model_copy(update={"epochs": 2, "clip": 0.5, "weight_decay": 0.1})
    models = []
    for seed in range(2):
        models.append(shapes.dense_network(workload).double())
        initialise(models[-1], generator(seed, "weights"))
    assert_as_alone(models, dataset, recipe, "torch")
