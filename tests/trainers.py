"""Trainings by a compiled backend and by torch, and whether they are the same."""

import copy
import importlib.util

import pytest

import pruneaudit.training.tiled_steps  # noqa: F401  (a backend)
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import Trainer
from pruneaudit.training.metering import Meter

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="Numba is not installed: pip install 'pruneaudit[compiled]'"
)


def fit(backend, model, dataset, recipe, precision="fp64", **options):
    """A finished trainer; ``model`` stays as it was."""
    model = copy.deepcopy(model)
    with Meter(model) as meter:
        trainer = Trainer(model, dataset, recipe, 0, "retrain", meter, precision, backend=backend, **options)
        trainer.fit()
    assert (trainer.backend, trainer.fallback) == (backend, None)
    return trainer


def tensors(trainer):
    """Weights and statistics, and momenta where there are any, by name."""
    found = dict(trainer.model.state_dict())
    for name, parameter in trainer.model.named_parameters():
        momentum = trainer.optimiser.state[parameter].get("momentum_buffer")
        found |= {} if momentum is None else {f"momentum of {name}": momentum}
    return found


def assert_same(one, other, tolerance=1e-10):
    """Two trainers ended with the same weights, statistics, momenta, curves and consumption."""
    first, second = tensors(one), tensors(other)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert float((tensor - second[name]).abs().max()) <= tolerance, name
    for name, curve in vars(one.history).items():
        assert curve == pytest.approx(vars(other.history)[name], rel=0, abs=tolerance), name
    assert one.meter.consumption == other.meter.consumption


class Killed(BaseException):
    """A kill that no ``except Exception`` catches."""


def assert_goes_on(folder, started, resumed, network, dataset, recipe):
    """A run that is killed after two epochs by one backend and goes on by another ends as one that was not."""
    checkpoint = Checkpoint(folder / "state.safetensors", "cpu")

    def kill(done, total, accuracy):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        fit(started, network(), dataset, recipe, checkpoint=checkpoint, progress=kill)
    whole = fit(resumed, network(), dataset, recipe)
    # Another initialisation: everything has to come out of the checkpoint.
    halves = fit(resumed, network(seed=9), dataset, recipe, checkpoint=checkpoint)
    assert halves.resumed_from == 2
    assert_same(halves, whole, tolerance=0.0 if started == resumed else 1e-10)
