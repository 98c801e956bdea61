"""What must hold on a GPU. ``make gpu`` runs it, without a GPU on the CPU: the same code, for a dry run."""

import copy
import os

import pytest
import torch
from test_ranks import RECIPE, apart, network
from test_training import digits
from torch import nn

from pruneaudit.training import ranks
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.many import train_many
from pruneaudit.training.precision import place
from pruneaudit.training.runs import Training
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.recipes import Recipe

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.skipif(
    not (CUDA or os.environ.get("PRUNEAUDIT_GPU")), reason="no CUDA device is visible here; make gpu does a dry run"
)


@pytest.fixture(autouse=True)
def prepared():
    Runtime(DEVICE).prepare()


def train(backend="torch", recipe=RECIPE, device=DEVICE, precision="fp64", seed=0, **options):
    """A small network after a training on a device, and what became of it."""
    model = place(copy.deepcopy(network(nn.BatchNorm2d(4))), device, precision)
    dataset = digits().to(torch.device(device))
    (found,) = train_many([Training(model, dataset, recipe, seed, "retrain", precision, **options)], backend)
    assert found.error is None, found.error
    return model.cpu(), found


@pytest.mark.parametrize(
    "backend",
    [
        "torch",
        "grouped",
        "graphed",
        pytest.param(
            "fused",
            marks=[] if CUDA else [pytest.mark.skip(reason="meant for GPUs: on a CPU it compiles for many seconds")],
        ),
    ],
)
def test_every_backend_trains_on_the_gpu_what_torch_trains_on_the_cpu(backend):
    expected, alone = train(device="cpu")
    model, found = train(backend)
    assert found.backend == backend, found.reason
    assert apart(expected, model) <= 1e-10
    assert found.history.train_loss == pytest.approx(alone.history.train_loss, abs=1e-10, rel=0)


def test_a_killed_training_goes_on_bit_by_bit_on_the_gpu(tmp_path):
    recipe = Recipe(epochs=3, lr="cosine:0.05", batch=30, optimiser="adamw", weight_decay=0.01)
    whole, history = train(recipe=recipe, precision="fp32")
    checkpoint = Checkpoint(tmp_path / "state.safetensors", DEVICE)

    def stop(done, _all, _metric):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe=recipe, precision="fp32", checkpoint=checkpoint, progress=stop)
    resumed, found = train(recipe=recipe, precision="fp32", checkpoint=checkpoint)
    assert found.resumed_from == 2 and apart(whole, resumed) == 0 and found.history == history.history


def test_bf16_trains():
    _, found = train(precision="bf16", recipe=RECIPE.for_epochs(4))
    assert found.history.train_loss[-1] < found.history.train_loss[0]


def test_ranks_are_started_as_cuda_needs_it(monkeypatch):
    """By value, not forked; on GPUs where there are two, else on the CPU."""
    device = "cuda" if torch.cuda.device_count() > 1 else "cpu"
    monkeypatch.setattr(ranks, "_start_method", lambda _device: "spawn")
    models = []
    for count in (1, 2):
        model = place(copy.deepcopy(network(nn.GroupNorm(2, 4))), device, "fp64")
        dataset = digits().to(torch.device(device))
        (found,) = train_many([Training(model, dataset, RECIPE.over(count), 0, "retrain", "fp64")])
        assert found.error is None, found.error
        models.append(model.cpu())
    assert apart(*models) <= 1e-12
    assert found.consumption.settings["gathered_by"] == ("nccl" if device == "cuda" else "gloo")
