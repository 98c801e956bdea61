"""Measuring which backend is the fastest here."""

from typing import get_args

import pytest

from pruneaudit.campaign import backends
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import RETIRED, Backend
from pruneaudit.cli import main
from pruneaudit.training.many import train_many

pytest.importorskip("numba")

TRAINING = set(get_args(Backend)) - set(RETIRED)


@pytest.fixture
def measured(monkeypatch):
    """One round of LeNet-5, cut at ratio 0.9."""
    monkeypatch.setattr(backends, "_SECONDS", 0.0)

    def measure(workload="lenet5-digits", **options):
        return {one.backend: one for one in backends.measure(Catalog().workload(workload), models=2, **options)}

    return measure


def test_every_backend_is_timed_on_as_many_runs_as_asked_for(measured, monkeypatch):
    asked = []

    def count(trainings, backend):
        asked.append((backend, len(trainings), {training.model.conv1.out_channels for training in trainings}))
        return train_many(trainings, backend)

    monkeypatch.setattr(backends, "train_many", count)
    found = measured(ratio=0.5)
    assert set(found) == TRAINING
    fused = found.pop("fused")
    assert (fused.seconds, fused.note) == (None, "not fused: no ReLU follows a normalisation")
    assert all(one.seconds is not None and one.seconds >= 0 and not one.note for one in found.values())
    assert {(backend, 2) for backend in TRAINING} == {(backend, models) for backend, models, _ in asked}
    assert {next(iter(widths)) for _, _, widths in asked} == {3}


def test_who_leaves_a_network_to_another_is_not_timed(measured, monkeypatch):
    found = measured(precision="bf16")
    assert found["tiled"].seconds is None and "not tiled" in found["tiled"].note
    assert found["torch"].seconds is not None


def test_a_backend_that_breaks_is_told_and_not_chosen(measured, monkeypatch):
    def broken(trainings, backend):
        if backend == "grouped":
            raise RuntimeError("no kernel\nfor this")
        return train_many(trainings, backend)

    monkeypatch.setattr(backends, "train_many", broken)
    found = measured()
    assert found["grouped"].seconds is None and found["grouped"].note == "RuntimeError: no kernel for this"
    assert found["torch"].seconds is not None


def test_where_a_step_takes_long_or_only_torch_trains_nothing_is_timed(measured, monkeypatch):
    """What one would wait for is no gain."""
    asked = []

    def count(trainings, backend):
        asked.append((backend, trainings[0].recipe.batch * trainings[0].recipe.steps))
        return train_many(trainings, backend)

    monkeypatch.setattr(backends, "train_many", count)
    both = {"backends": ("tiled", "torch"), "rounds": 3}
    found = measured(longest=1e-9, **both)
    assert found["torch"].seconds == 0 and found["tiled"].seconds is None
    assert found["tiled"].note.startswith("not timed, since a step of torch's takes ")
    # A few small batches of torch's alone.
    assert {backend for backend, _ in asked} == {"torch"} and max(images for _, images in asked) == 24
    asked.clear()
    found = measured("vit-digits", longest=1000.0, **both)
    assert found["torch"].seconds == 0 and "torch's loop alone does" in found["tiled"].note
    assert asked == []
    assert all(one.seconds > 0 for one in measured(longest=1000.0, **both).values())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resnet20-digit"], "unknown workload 'resnet20-digit'. Did you mean 'resnet20-digits'?"),
        (["lenet5-digits", "--ratio", "1.5"], "--ratio 1.5: expected a number between 0 and 1"),
        (["lenet5-digits", "--device", "cuda"], "--device cuda: no CUDA device is visible here"),
    ],
)
def test_wrong_arguments_are_one_line(monkeypatch, capsys, arguments, line):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("sys.argv", ["pruneaudit", "backends", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"pruneaudit: {line}")
