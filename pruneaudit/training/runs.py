"""One training of a list, by itself and while it trains beside others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import pruneaudit.training.tiled_steps  # noqa: F401  (a backend)
from pruneaudit.catalog.settings import Backend
from pruneaudit.measure.accuracy import Score
from pruneaudit.measure.metric import BY_ACCURACY, Measure
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.distillation import Teacher
from pruneaudit.training.loop import History, Hooks, Observer, Progress, Trainer
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.workloads.data import Dataset, Split
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch


@dataclass
class Training:
    """One plain training.

    Attributes:
        model: The network, on its device and in its precision; trained in place.
        dataset: Data on the same device; runs train together only on the same object.
        recipe: What to do.
        seed: The run's seed.
        stream: Name of the stream of data order and augmentation.
        precision: ``fp32``, ``bf16`` (autocast) or ``fp64``.
        checkpoint: Where to keep the state between epochs, or None.
        progress: Called after every epoch with (epochs done, epochs in all, the metric on the test split), or None.
        state: Facts and tensors of a method, kept in the checkpoint.
        masks: Which weights may differ from zero, by layer, bool.
        hooks: What a method adds to training, or None.
        measure: The workload's metric.
        observer: Looks at the network after every epoch, or None; not where several ranks train it.
        teacher: Who adds to the loss where the recipe has distillation; else None.
    """

    model: nn.Module
    dataset: Dataset
    recipe: Recipe
    seed: int
    stream: str
    precision: str = "fp32"
    checkpoint: Checkpoint | None = None
    progress: Progress | None = None
    state: dict[str, Any] | None = None
    masks: Mapping[str, torch.Tensor] | None = None
    hooks: Hooks | None = None
    measure: Measure = BY_ACCURACY
    observer: Observer | None = None
    teacher: Teacher | None = None

    def trainer(self, meter: Meter, steps: str = "torch") -> Trainer:
        """The plain loop over it; ``steps`` is the trainer's backend."""
        return Trainer(
            self.model,
            self.dataset,
            self.recipe,
            self.seed,
            self.stream,
            meter,
            self.precision,
            self.checkpoint,
            self.progress,
            self.state,
            self.masks,
            steps,
            self.measure,
            observer=self.observer,
            teacher=self.teacher,
        )


@dataclass
class Trained:
    """What became of one training.

    Attributes:
        backend: What trained it.
        reason: Why it is not the one that was asked for, or why steps were not captured; empty: all is as asked for.
        history: Its curves.
        consumption: What was measured.
        resumed_from: Epochs that a checkpoint held.
        training_seconds: Time of its steps; of steps of several models its share.
        seconds: Time of everything, evaluation and checkpoints included; of what several models did together its share.
        error: What ended it early (:class:`pruneaudit.training.loop.DivergedError` among others), or None.
    """

    backend: Backend
    reason: str = ""
    history: History = field(default_factory=History)
    consumption: Consumption = field(default_factory=Consumption)
    resumed_from: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    error: Exception | None = None


class Run:
    """A training while it trains beside others: how far it is, and its state between two stacks.

    Weights, momenta, curves and snapshots are a :class:`Trainer`'s, so that either may go on where the other stopped.

    Args:
        number: Which of the list it is.
        training: What is trained.
        trained: Where the result goes.
        save_every: Seconds between two checkpoints at least.

    Attributes:
        step: Steps that are over.
        total: Steps of the whole training.
        per_epoch: Steps of an epoch.
    """

    def __init__(self, number: int, training: Training, trained: Trained, save_every: float) -> None:
        self.number, self.training, self.trained = number, training, trained
        self.trainer = training.trainer(Meter(training.model, trained.consumption, example=training.dataset.example()))
        self.device = next(training.model.parameters()).device
        self.per_epoch = steps_per_epoch(len(training.dataset.train), training.recipe.batch)
        self.total = training.recipe.total_steps(self.per_epoch)
        self.epochs = math.ceil(self.total / self.per_epoch)
        self.step = self.trainer.resume() * self.per_epoch
        trained.history, trained.resumed_from = self.trainer.history, self.trainer.resumed_from
        self._save_every, self._saved = save_every, time.monotonic()
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._loss, self._hits, self._seen = 0.0, 0, 0

    @property
    def phase(self) -> int:
        """Steps of the current epoch that are over."""
        return self.step % self.per_epoch

    @property
    def epoch(self) -> int:
        """Epoch of the next step, 0-based."""
        return self.step // self.per_epoch

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.total or self.trained.error is not None

    def rates(self, steps: int) -> list[float]:
        """Learning rates of the next steps."""
        recipe = self.training.recipe
        if recipe.epochs is not None and not recipe.schedule.per_step:
            return [recipe.rate(self.epoch, self.step)] * steps
        return [recipe.rate(self.epoch, step, self.per_epoch) for step in range(self.step, self.step + steps)]

    def went(self, sizes: Sequence[int], loss: float, hits: int, seconds: float) -> bool:
        """Count steps that are over, as a meter does; say whether an epoch, or the last part of one, is.

        Args:
            sizes: Images of each step.
            loss: Sum of the images' losses.
            hits: How many were classified correctly.
            seconds: Time that the steps took, of steps of several models its share.
        """
        recipe, consumption = self.training.recipe, self.trained.consumption
        for rate in self.rates(len(sizes)):
            consumption.step(rate)
        consumption.training_samples += sum(sizes)
        consumption.batch = max(consumption.batch, *sizes)
        consumption.settings = {
            "optimiser": "sgd",
            "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay,
            "nesterov": recipe.nesterov,
            "dampening": 0,
        }
        self.step += len(sizes)
        self._loss += loss
        self._hits += hits
        self._seen += sum(sizes)
        self.trainer.training_seconds += seconds
        self.trained.training_seconds = self.trainer.training_seconds
        return self.phase == 0 or self.step == self.total

    def close(self, scores: Scores, unpack: Callable[[], None]) -> None:
        """Close an epoch as the trainer does: curves, checkpoint, progress; what goes wrong ends this run.

        Args:
            scores: How the network does after the epoch.
            unpack: Brings its state.
        """
        checkpoint, now = self.training.checkpoint, time.monotonic()
        is_due = checkpoint is not None and now - self._saved >= self._save_every
        epoch, sums = math.ceil(self.step / self.per_epoch) - 1, (self._loss, self._hits, self._seen)
        self._start_epoch()
        try:
            # After the last epoch, and where more is asked for, the trainer looks at the network itself.
            looks = self.training.measure.closely or self.training.observer is not None
            if is_due or self.training.masks or looks or epoch + 1 == self.epochs:
                unpack()
            self.trainer.checkpoint = checkpoint if is_due else None
            self.trainer.close_epoch(scores.of, epoch, self.epochs, *sums)
        except Exception as error:
            self.trained.error = error
        self._saved = now if is_due else self._saved


@dataclass(frozen=True)
class Scores:
    """How a network does on the held-out splits of its dataset."""

    data: Dataset
    validation: Score
    test: Score

    def of(self, part: Split) -> Score:
        """The score of a split."""
        return self.validation if part is self.data.validation else self.test
