"""Which backend trains runs of a workload fastest on this machine: measured on random images, before anything runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from pruneaudit.campaign.calibration import clock
from pruneaudit.catalog.settings import RETIRED, Backend
from pruneaudit.errors import AuditError, one_line
from pruneaudit.pruning import shapes
from pruneaudit.training import loop
from pruneaudit.training.loop import Hooks
from pruneaudit.training.many import train_many
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.training.precision import place
from pruneaudit.training.runs import Training
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import Dataset, facts, imitation
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch
from pruneaudit.workloads.schema import Workload

#: All that train.
BACKENDS: tuple[Backend, ...] = tuple(name for name in get_args(Backend) if name not in RETIRED)
#: What the steps between two lengths take is the time of steps alone: neither stacking, capturing nor compiling.
_FEW, _MORE = 2, 6
#: Rounds at most, and seconds after which no other one begins.
_ROUNDS, _SECONDS = 9, 20.0
#: Images of the batches from which it is told how long a step of torch's takes.
_A_FEW_IMAGES = 8


@dataclass(frozen=True)
class Measured:
    """A backend.

    Attributes:
        backend: Its name.
        seconds: Time of one epoch's steps of one network; None where it cannot train it.
        note: Why not.
    """

    backend: Backend
    seconds: float | None
    note: str = ""


def measure(
    workload: Workload,
    device: str = "cpu",
    precision: str = "fp32",
    models: int = 8,
    ratio: float | None = None,
    backends: Sequence[Backend] = BACKENDS,
    rounds: int = _ROUNDS,
    longest: float | None = None,
) -> list[Measured]:
    """Time backends, in turns; medians of as many rounds as the time allows.

    Args:
        workload: Whose network, batch and dataset.
        device: ``cpu`` or ``cuda``.
        precision: Arithmetic.
        models: Runs of one shape, trained together where the backend does that.
        ratio: Pruning ratio of the network; None: the dense one.
        backends: Which are timed.
        rounds: How often at most; 0: nothing is trained, and all seconds are 0 of those that can.
        longest: To choose one of them: where a step of torch's takes longer, or nothing else trains such networks,
            torch alone is left, and nothing timed. None: all are timed.

    Returns:
        One for each backend.
    """
    Runtime(device).prepare()
    batch = workload.retrain.batch
    data = imitation(workload.data, _MORE * batch, 1).to(torch.device(device))
    per_epoch = steps_per_epoch(facts(workload.data).train, batch)
    widths = shapes.widths_at(workload, ratio) if ratio is not None else {}

    def made(steps: int, images: int = batch) -> list[Training]:
        return [_training(workload, widths, data, device, precision, steps, images, seed) for seed in range(models)]

    def seconds(backend: Backend, steps: int, images: int = batch) -> float:
        trainings = made(steps, images)
        started = clock(device)
        results = train_many(trainings, backend)
        taken = clock(device) - started
        for result in results:
            if result.error is not None:
                raise result.error
            if result.backend != backend:
                raise CannotTrainError(result.reason)
        return taken

    def a_step() -> float:
        """Seconds of a step of torch's, as a few images tell them."""
        images = min(batch, _A_FEW_IMAGES)
        # The first of all loads what others find ready.
        _, one, three = (seconds("torch", steps, images) for steps in (1, 1, 3))
        return (three - one) / 2 / models * batch / images

    notes: dict[Backend, str] = {}
    for backend in backends:
        try:
            _see(made(1)[0], backend)
        except Exception as error:
            notes[backend] = _told(error)
    others = [backend for backend in backends if backend != "torch" and backend not in notes]
    if longest is not None and others and rounds and (step := a_step()) > longest:
        notes |= dict.fromkeys(others, f"not timed, since a step of torch's takes {step:.0f} seconds here")
        others = []
    if longest is not None and not others:
        rounds = 0
    found: dict[Backend, list[float]] = {}
    for backend in backends:
        if backend in notes:
            continue
        try:
            if rounds:
                # Its first steps compile, capture and load what later ones find ready.
                seconds(backend, _FEW)
        except Exception as error:
            notes[backend] = _told(error)
        else:
            found[backend] = []
    began = clock(device)
    for number in range(rounds if len(found) > 1 else min(rounds, 1)):
        if number and clock(device) - began > _SECONDS:
            break
        for backend, times in found.items():
            few, more = seconds(backend, _FEW), seconds(backend, _MORE)
            # Where steps take next to nothing, the clock may turn round: then what is fixed is counted with them.
            each = (more - few) / (_MORE - _FEW) if more > few else more / _MORE
            times.append(each / models)
    return [
        Measured(
            name,
            statistics.median(found[name] or [0.0]) * per_epoch if name in found else None,
            notes.get(name, ""),
        )
        for name in backends
    ]


class CannotTrainError(AuditError):
    """A backend leaves these networks to another one; the message says why."""


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, CannotTrainError) else one_line(error)


def _see(training: Training, backend: Backend) -> None:
    """Ask a backend that makes the steps of single runs whether it makes these, before any is made.

    Raises:
        CannotTrainError: It does not.
    """
    if backend in loop.BACKENDS:
        with Meter(training.model, Consumption(), example=training.dataset.example()) as meter:
            steps = loop.BACKENDS[backend](training.trainer(meter, backend), Hooks())
        if isinstance(steps, str):
            raise CannotTrainError(f"not {backend}: {steps}")


def _training(
    workload: Workload,
    widths: dict[str, int],
    data: Dataset,
    device: str,
    precision: str,
    steps: int,
    images: int,
    seed: int,
) -> Training:
    recipe: dict[str, Any] = {"epochs": None, "steps": steps, "batch": images, "lr": "0:1e-4"}
    model = place(shapes.network(workload, widths), device, precision)
    return Training(
        model, data, Recipe.model_validate({**workload.retrain.model_dump(), **recipe}), seed, "probe", precision
    )
