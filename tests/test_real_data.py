"""Seconds on the real CIFAR-10 and MNIST, where `PRUNEAUDIT_DATA` names a folder that has them."""

import os
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.measure.accuracy import evaluate
from pruneaudit.method.answers import checked
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.pruning.removal import shrink
from pruneaudit.streams import generator
from pruneaudit.training.loop import Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place
from pruneaudit.workloads.data import load
from pruneaudit.workloads.models.initialise import initialise

torch.set_num_threads(1)
DATA = os.environ.get("PRUNEAUDIT_DATA")
CHECKPOINTS = os.environ.get("PRUNEAUDIT_CHECKPOINTS")
needs_data = pytest.mark.skipif(not DATA, reason="PRUNEAUDIT_DATA names no folder with the real datasets")
needs_checkpoints = pytest.mark.skipif(
    not CHECKPOINTS, reason="PRUNEAUDIT_CHECKPOINTS names no folder with base models"
)


def workload(name):
    return Catalog().workload(name)


@lru_cache(maxsize=1)
def real(config):
    """The whole dataset; decoding and normalising sixty thousand images takes seconds."""
    return load(config, Path(DATA))


@needs_data
@needs_checkpoints
def test_a_public_resnet20_has_its_accuracy():
    """91.73 % on all 10,000 test images was measured independently for this checkpoint, with ImageNet statistics."""
    job = workload("resnet56-cifar10").model_copy(update={"model": "resnet20"})
    model = shapes.dense_network(job)
    missing, unexpected = model.load_state_dict(
        load_file(Path(CHECKPOINTS) / "resnet20-cifar10.safetensors"), strict=False
    )
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    data = real(job.data)
    assert evaluate(place(model, "cpu", "fp32"), data, data.test).accuracy == pytest.approx(91.73, abs=0.011)


@needs_data
def test_a_few_steps_of_pruning_and_retraining_on_cifar10():
    job = workload("resnet56-cifar10").scaled("smoke").model_copy(update={"model": "resnet20"})
    data = real(job.data)
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    # A few images are enough to see all parts work on the real thing.
    small = type(data)(
        data.config,
        data.classes,
        type(data.train)(data.train.images[:32], data.train.labels[:32]),
        type(data.train)(data.validation.images[:16], data.validation.labels[:16]),
        type(data.train)(data.test.images[:16], data.test.labels[:16]),
        data.split_digest,
    )
    model = place(shapes.dense_network(job), "cpu", "bf16")
    method = Catalog().method("tpp").create()
    layers = prunable_layers(model, data.example(), job.prunable)
    with Meter(model) as meter:
        recipe = job.prune.model_copy(update={"steps": 2, "batch": 8})
        task = PruningTask(model, layers, job, 0.5, recipe, small, 0, meter, "tpp", "bf16")
        kept = checked(method.prune(task), task, method).kept
    assert meter.consumption.optimiser_steps == 2 and meter.consumption.training_samples == 16
    pruned = shrink(model, kept, data.example())
    with Meter(pruned) as meter:
        retrain = job.retrain.model_copy(update={"batch": 8})
        history = Trainer(pruned, small, retrain, 0, "retrain", meter, "bf16").fit()
    assert len(history.test_accuracy) == 1 and meter.consumption.rates == [[0.01, 4]]


@needs_data
def test_lenet_learns_mnist_in_a_hundred_steps():
    job = workload("lenet5-mnist")
    data = real(job.data)
    model = place(shapes.dense_network(job), "cpu", "fp32")
    # Weights that no test before it has a part in: with some of them a hundred steps end below 80 %.
    initialise(model, generator(0, "weights"))
    recipe = job.pretrain.model_copy(update={"epochs": None, "steps": 100, "lr": "0:5e-2"})
    with Meter(model) as meter:
        history = Trainer(model, data, recipe, 0, "pretrain", meter).fit()
    assert history.test_accuracy[-1] > 80
