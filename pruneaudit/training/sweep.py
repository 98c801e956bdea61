"""Many small networks on the same batches: trained in lockstep, and scored.

A study retrains hundreds of networks that differ in which filters, or heads and neurons, they kept. All of them see the
same examples in the same order, so that batches are made once, and LeNet-5s of one shape take turns in the same
activations. Every network gets the steps that :class:`~pruneaudit.training.loop.Trainer` would give it alone, to the
bit; what is left out is what a record needs and a study does not: curves, an evaluation after each epoch, consumption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from pruneaudit.errors import ConfigError
from pruneaudit.measure.accuracy import Score
from pruneaudit.training.compiled import CompiledLeNet, obstacle
from pruneaudit.training.loop import Hooks, clip_gradients
from pruneaudit.workloads import optimisers
from pruneaudit.workloads.data import Dataset, Split
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch

#: Images of an evaluation batch.
_EVALUATION_BATCH = 128


class _Networks(Protocol):
    """Networks that are trained and scored together; losses and hits are by network and label."""

    def descend(self, images: torch.Tensor, labels: torch.Tensor, rate: float) -> None:
        """One step of each network on a batch."""

    def answer(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Losses and hits ``[networks, B]``, of texts ``[networks, B, T]``; changes nothing."""

    def deliver(self) -> None:
        """Give the modules their weights."""


class Sweep:
    """Networks over one dataset; trained in place.

    Args:
        models: The networks, on the CPU, all of the precision's type; those that are compiled have one shape.
        dataset: Their data, in memory.
        precision: ``fp32`` or ``fp64``.
        recipe: How they train; None: they are only scored.

    Attributes:
        compiled: Whether compiled steps train them; torch does elsewhere, one after the other on each batch.

    Raises:
        ConfigError: The recipe asks for what only the plain loop does.
    """

    def __init__(
        self, models: Sequence[nn.Module], dataset: Dataset, precision: str = "fp32", recipe: Recipe | None = None
    ) -> None:
        if recipe is not None and (asked := recipe.around_steps):
            raise ConfigError(f"networks of a study cannot train so: its recipe has {', '.join(asked)}")
        self._dataset = dataset
        self._recipe = recipe
        self._type = next(models[0].parameters()).dtype
        reasons = [obstacle(model, dataset, Hooks(), precision) for model in models]
        shapes = {tuple(tuple(parameter.shape) for parameter in model.parameters()) for model in models}
        plain = recipe is None or not recipe.only_torch
        self.compiled = not any(reasons) and len(shapes) == 1 and plain
        self._networks: _Networks = (_Compiled if self.compiled else _Plain)(models, recipe)

    def train(self, seed: int, stream: str) -> None:
        """Train all networks to the end of the recipe.

        Args:
            seed: Seed of data order and augmentation.
            stream: Name of their stream, such as ``"retrain"``.
        """
        recipe = self._recipe
        assert recipe is not None and recipe.epochs is not None
        per_epoch = steps_per_epoch(len(self._dataset.train), recipe.batch)
        with threadpool_limits(torch.get_num_threads(), user_api="blas"), np.errstate(all="ignore"):
            for epoch in range(recipe.epochs):
                batches = self._dataset.batches(seed, stream, epoch, recipe.batch, self._type)
                for step, (images, labels) in enumerate(batches, epoch * per_epoch):
                    self._networks.descend(images, labels, recipe.rate(epoch, step, per_epoch))
            self._networks.deliver()

    def score(self, split: Split) -> list[Score]:
        """How each network does on a split, without augmentation; a network that diverged has a loss of NaN."""
        losses, hits = [], []
        with threadpool_limits(torch.get_num_threads(), user_api="blas"), np.errstate(all="ignore"):
            for images, labels in self._dataset.inputs(split, self._type, _EVALUATION_BATCH):
                some, right = self._networks.answer(images, labels)
                # Of texts every token counts.
                losses.append(some.reshape(len(some), -1).sum(axis=1, dtype=np.float64))
                hits.append(right.reshape(len(right), -1))
        correct = np.concatenate(hits, axis=1)
        total = np.sum(losses, axis=0) / correct.shape[1]
        return [
            Score(accuracy=100.0 * int(right.sum()) / len(right), loss=float(loss), correct=right)
            for loss, right in zip(total, correct, strict=True)
        ]


class _Compiled:
    """LeNet-5s of one shape."""

    def __init__(self, models: Sequence[nn.Module], recipe: Recipe | None) -> None:
        first = CompiledLeNet(models[0])
        self._networks = [first, *(CompiledLeNet(model, beside=first) for model in models[1:])]
        self._recipe = recipe
        for network in self._networks:
            network.fetch()
        if recipe is not None:
            self._velocities = [network.zeros() for network in self._networks]
            self._everything = np.ones_like(self._velocities[0])

    def descend(self, images: torch.Tensor, labels: torch.Tensor, rate: float) -> None:
        recipe = self._recipe
        assert recipe is not None
        self._networks[0].show(images)
        for network, velocity in zip(self._networks, self._velocities, strict=True):
            network.learn(labels, recipe.label_smoothing)
            network.descend(velocity, self._everything, rate, recipe.momentum, recipe.weight_decay, recipe.nesterov)

    def answer(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        self._networks[0].show(images)
        found = [network.cross_entropy(network.answer(len(images)), labels) for network in self._networks]
        return np.stack([losses for losses, _ in found]), np.stack([hits for _, hits in found])

    def deliver(self) -> None:
        for network in self._networks:
            network.deliver()


class _Plain:
    """Any networks, by torch."""

    def __init__(self, models: Sequence[nn.Module], recipe: Recipe | None) -> None:
        self._models = list(models)
        self._recipe = recipe
        self._smoothing = 0.0 if recipe is None else recipe.label_smoothing
        self._optimisers = [] if recipe is None else [optimisers.make(recipe, model, 0.0) for model in models]

    def descend(self, images: torch.Tensor, labels: torch.Tensor, rate: float) -> None:
        recipe = self._recipe
        assert recipe is not None
        for model, optimiser in zip(self._models, self._optimisers, strict=True):
            model.train()
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels, label_smoothing=self._smoothing).backward()
            clip_gradients(model, recipe)
            optimiser.step()

    @torch.no_grad()
    def answer(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        losses, hits = [], []
        for model in self._models:
            logits = model.eval()(images)
            losses.append(F.cross_entropy(logits, labels, reduction="none").numpy())
            hits.append((logits.argmax(dim=1) == labels).numpy())
        return np.stack(losses), np.stack(hits)

    def deliver(self) -> None:
        """The modules have them."""
