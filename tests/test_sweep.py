"""Networks that are trained in lockstep, against the plain trainer of one."""

import copy
import importlib.util

import pytest
import torch
from plays import brought
from test_compiled import RECIPE, digits, network, noise

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


@pytest.mark.parametrize(
    ("widths", "compiled"),
    [
        pytest.param([(3, 4, 5, 6)] * 3, True, marks=needs_numba),
        # Networks of several shapes: torch, one after the other.
        ([(3, 4, 5, 6), (2, 4, 5, 6)], False),
    ],
)
def test_each_network_gets_the_steps_that_it_would_get_alone(widths, compiled):
    dataset = digits(train=70)
    models = [network(each, seed=seed) for seed, each in enumerate(widths)]
    wanted = [alone(model, dataset, SMALL, seed=5) for model in models]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    sweep = Sweep(models, dataset, "fp64", SMALL)
    assert sweep.compiled is compiled
    sweep.train(5, "retrain")
    for model, other, old in zip(models, wanted, before, strict=True):
        for name, tensor in model.state_dict().items():
            assert float((tensor - other.state_dict()[name]).abs().max()) <= 1e-10, name
            assert not torch.equal(tensor, old[name])
    for score, other in zip(sweep.score(dataset.test), wanted, strict=True):
        expected = evaluate(other, dataset, dataset.test)
        assert (score.accuracy, score.loss) == (expected.accuracy, pytest.approx(expected.loss, rel=1e-9))
        assert (score.correct == expected.correct).all()


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
    wanted = [alone(model, dataset, recipe, seed=5) for model in models]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    sweep = Sweep(models, dataset, "fp64", recipe)
    assert not sweep.compiled
    sweep.train(5, "retrain")
    for model, other, old in zip(models, wanted, before, strict=True):
        for name, tensor in model.state_dict().items():
            assert float((tensor - other.state_dict()[name]).abs().max()) <= 1e-10, name
            assert not torch.equal(tensor, old[name]) or name not in dict(model.named_parameters())
    for score, other in zip(sweep.score(dataset.test), wanted, strict=True):
        expected = evaluate(other, dataset, dataset.test, "fp64")
        assert score.accuracy == expected.accuracy and score.loss == pytest.approx(expected.loss, rel=1e-9)
        assert (score.correct == expected.correct.flatten()).all()
