"""Counts what a stage really consumes, whoever drives it.

The meter hangs on the network (forward hooks) and on every optimiser of the process (step hooks), so a method that
trains in a loop of its own is counted like one that asks the harness to train.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook


@dataclass
class Consumption:
    """What was measured.

    Attributes:
        training_samples: Images that passed the network with gradients on.
        scoring_samples: Images that passed it without.
        optimiser_steps: Steps of any optimiser.
        rates: Learning rate of every step, run-length coded: ``[rate, steps]`` in order.
        batch: Largest batch that passed with gradients on.
        settings: The optimiser's settings other than the learning rate, as seen at the steps.
    """

    training_samples: int = 0
    scoring_samples: int = 0
    optimiser_steps: int = 0
    rates: list[list[float]] = field(default_factory=list)
    batch: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def step(self, rate: float) -> None:
        """Count one optimiser step."""
        self.optimiser_steps += 1
        if self.rates and self.rates[-1][0] == rate:
            self.rates[-1][1] += 1
        else:
            self.rates.append([rate, 1])


_SETTINGS = ("momentum", "weight_decay", "nesterov", "dampening")


class Meter:
    """Counts, while entered, the passes of one network and the steps of all optimisers."""

    def __init__(self, model: nn.Module, consumption: Consumption | None = None) -> None:
        self.consumption = consumption if consumption is not None else Consumption()
        self._model = model
        self._paused = False
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        # Plain closures: copying the network copies its hooks, and a copied closure still counts here.
        def forward(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = [value for value in (*inputs, *named.values()) if isinstance(value, torch.Tensor)]
            if self._paused or not tensors:
                return
            images = tensors[0].shape[0]
            if torch.is_grad_enabled():
                self.consumption.training_samples += images
                self.consumption.batch = max(self.consumption.batch, images)
            else:
                self.consumption.scoring_samples += images

        def step(optimiser: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            if self._paused:
                return
            group = optimiser.param_groups[0]
            self.consumption.step(float(group["lr"]))
            kind = type(optimiser).__name__.lower()
            self.consumption.settings = {"optimiser": kind} | {key: group[key] for key in _SETTINGS if key in group}

        self._handles = [
            self._model.register_forward_pre_hook(forward, with_kwargs=True),
            register_optimizer_step_pre_hook(step),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count: the harness evaluates."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before
