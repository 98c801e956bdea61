"""How one stage trains. Imports no torch."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, field_validator, model_validator

from pruneaudit.schema import Frozen
from pruneaudit.workloads.schedule import Schedule


class Recipe(Frozen):
    """How one stage trains: SGD with momentum, by epochs or by steps.

    Attributes:
        epochs: Length in passes over the training split; the schedule then counts epochs.
        steps: Length in optimiser steps (the pruning stage's unit); the schedule then counts steps.
        lr: Learning-rate schedule in its text form, see :mod:`pruneaudit.schedule`.
        start: Steps of the schedule that an earlier stage has used up (a topped-up pruning stage under S4.2).
        span: Steps of the whole schedule where this stage is a part of it; 0: the stage's own length.
        batch: Images per step.
        momentum: SGD momentum.
        weight_decay: L2 coefficient on all parameters.
        nesterov: Nesterov momentum.
        label_smoothing: Mass moved from the true class to all classes.
    """

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=0)
    lr: str
    start: int = Field(default=0, ge=0)
    span: int = Field(default=0, ge=0)
    batch: int = Field(ge=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    nesterov: bool = False
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("lr")
    @classmethod
    def _canonical(cls, text: str) -> str:
        return str(Schedule.parse(text))

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        return self

    @property
    def schedule(self) -> Schedule:
        """The learning-rate schedule, parsed."""
        return Schedule.parse(self.lr)

    def rate(self, epoch: int, step: int) -> float:
        """Learning rate of an optimiser step, given its epoch and its number (both 0-based)."""
        if self.epochs is not None:
            return self.schedule.rate(epoch, self.epochs)
        return self.schedule.rate(self.start + step, self.span or self.start + (self.steps or 0))

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole stage."""
        return self.epochs * steps_per_epoch if self.epochs is not None else (self.steps or 0)

    def images(self, train: int) -> int:
        """Images of the whole stage over a split of ``train`` images: the last batch of a pass is smaller."""
        per_epoch = steps_per_epoch(train, self.batch)
        passes, rest = divmod(self.total_steps(per_epoch), per_epoch)
        return passes * train + min(rest * self.batch, train)

    def for_epochs(self, epochs: int) -> Recipe:
        """The same recipe stretched or shrunk to ``epochs``, its boundaries in proportion.

        Raises:
            ValueError: The recipe counts steps.
        """
        if self.epochs is None:
            raise ValueError("a recipe in steps has no length in epochs")
        lr = str(self.schedule.stretched(epochs / self.epochs))
        return self.model_copy(update={"epochs": epochs, "lr": lr})

    def for_steps(self, steps: int) -> Recipe:
        """The same recipe stretched or shrunk to ``steps``.

        Raises:
            ValueError: The recipe counts epochs.
        """
        if not self.steps:
            raise ValueError("only a recipe in steps can be stretched to steps")
        return self.model_copy(update={"steps": steps, "lr": str(self.schedule.stretched(steps / self.steps))})


def steps_per_epoch(images: int, batch: int) -> int:
    """Optimiser steps of one pass; the last, smaller batch counts."""
    return math.ceil(images / batch)
