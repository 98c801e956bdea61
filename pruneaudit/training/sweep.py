"""Many small networks on the same batches: trained in lockstep, and scored.

A study retrains hundreds of networks that differ in which filters, or heads and neurons, they kept. All of them see the
same examples in the same order, so that batches are made once, and networks in tiles of one form take turns in the same
activations. Every network gets the steps that :class:`~pruneaudit.training.loop.Trainer` would give it alone, to the
bit; what is left out is what a record needs and a study does not: curves, an evaluation after each epoch, consumption.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.errors import ConfigError
from pruneaudit.measure.accuracy import Score
from pruneaudit.training.loop import Hooks, clip_gradients
from pruneaudit.training.tiled import EVALUATION_BATCH, TiledNetwork, Tiles, layers_of, unfit
from pruneaudit.training.tiled_graph import form_of
from pruneaudit.training.tiled_steps import Showing
from pruneaudit.workloads import optimisers
from pruneaudit.workloads.data import Dataset, Split
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch

Answer = TypeVar("Answer")


class _Networks(Protocol):
    """Networks that are trained and scored together; losses and hits are by network and label.

    Attributes:
        steps: What trains them, as records name it.
    """

    steps: str

    def batches(self, seed: int, stream: str, epoch: int) -> Iterator[torch.Tensor]:
        """An augmented pass over the training split; gives the labels ``[B]`` of each batch once it is shown."""

    def inputs(self, split: Split) -> Iterator[torch.Tensor]:
        """A pass over a split in order; gives labels as :meth:`batches` does."""

    def descend(self, labels: torch.Tensor, rate: float) -> None:
        """One step of each network on what was shown last."""

    def answer(self, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Losses and hits ``[networks, B]``, of texts ``[networks, B, T]``; changes nothing."""

    def deliver(self) -> None:
        """Give the modules their weights."""


class Sweep:
    """Networks over one dataset; trained in place.

    Args:
        models: The networks, on the CPU, all of the precision's type.
        dataset: Their data, in memory.
        precision: ``fp32`` or ``fp64``.
        recipe: How they train; None: they are only scored.
        threads: Cores for networks in tiles: each thread has some of them, and no number depends on how many there are.

    Attributes:
        steps: What trains them: ``tiled``, or ``torch`` where one of them has no tiles, one after the other on each
            batch.

    Raises:
        ConfigError: The recipe asks for what only the plain loop does.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        dataset: Dataset,
        precision: str = "fp32",
        recipe: Recipe | None = None,
        threads: int = 1,
    ) -> None:
        if recipe is not None and (asked := recipe.around_steps):
            raise ConfigError(f"networks of a study cannot train so: its recipe has {', '.join(asked)}")
        self._dataset = dataset
        self._recipe = recipe
        threads = min(threads, len(models))
        tiles = _tiles(models, dataset, precision, recipe, threads)
        self._networks: _Networks = (
            _Tiled(models, tiles, dataset, recipe, threads) if tiles else _Plain(models, dataset, recipe)
        )
        self.steps = self._networks.steps

    def train(self, seed: int, stream: str) -> None:
        """Train all networks to the end of the recipe.

        Args:
            seed: Seed of data order and augmentation.
            stream: Name of their stream, such as ``"retrain"``.
        """
        recipe = self._recipe
        assert recipe is not None and recipe.epochs is not None
        per_epoch = steps_per_epoch(len(self._dataset.train), recipe.batch)
        with np.errstate(all="ignore"):
            for epoch in range(recipe.epochs):
                for step, labels in enumerate(self._networks.batches(seed, stream, epoch), epoch * per_epoch):
                    self._networks.descend(labels, recipe.rate(epoch, step, per_epoch))
            self._networks.deliver()

    def score(self, split: Split) -> list[Score]:
        """How each network does on a split, without augmentation; a network that diverged has a loss of NaN."""
        losses, hits = [], []
        with np.errstate(all="ignore"):
            for labels in self._networks.inputs(split):
                some, right = self._networks.answer(labels)
                # Of texts every token counts.
                losses.append(some.reshape(len(some), -1).sum(axis=1, dtype=np.float64))
                hits.append(right.reshape(len(right), -1))
        correct = np.concatenate(hits, axis=1)
        total = np.sum(losses, axis=0) / correct.shape[1]
        return [
            Score(accuracy=100.0 * int(right.sum()) / len(right), loss=float(loss), correct=right)
            for loss, right in zip(total, correct, strict=True)
        ]


def _tiles(
    models: Sequence[nn.Module], dataset: Dataset, precision: str, recipe: Recipe | None, threads: int
) -> list[Tiles]:
    """Tiles of each network, of those of one form and thread the same; none where one of them has no tiles."""
    found: list[Tiles] = []
    known: dict[Hashable, Tiles] = {}
    for place, model in enumerate(models):
        if unfit(model, Hooks(), precision) is not None:
            return []
        form = form_of(model), place % threads
        if form not in known:
            layers = layers_of(model, dataset, Hooks(), precision, recipe)
            if isinstance(layers, str):
                return []
            batch, kind = 1 if recipe is None else recipe.batch, next(model.parameters()).dtype
            known[form] = Tiles(layers, batch, kind, beside=found[0] if found else None)
        found.append(known[form])
    return found


class _Tiled:
    """Networks in tiles."""

    steps = "tiled"

    def __init__(
        self,
        models: Sequence[nn.Module],
        tiles: Sequence[Tiles],
        dataset: Dataset,
        recipe: Recipe | None,
        threads: int,
    ) -> None:
        self._threads = ThreadPoolExecutor(threads) if threads > 1 else None
        self._shares = [range(first, len(models), threads) for first in range(threads)]
        self._networks = [TiledNetwork(model, mine) for model, mine in zip(models, tiles, strict=True)]
        self._showing = Showing(tiles[0], dataset)
        self._recipe = recipe
        for network in self._networks:
            network.fetch()
        if recipe is not None:
            self._velocities = [network.zeros() for network in self._networks]
            self._everything = [np.ones_like(velocity) for velocity in self._velocities]

    def batches(self, seed: int, stream: str, epoch: int) -> Iterator[torch.Tensor]:
        assert self._recipe is not None
        return self._showing.batches(seed, stream, epoch, self._recipe.batch)

    def inputs(self, split: Split) -> Iterator[torch.Tensor]:
        return self._showing.inputs(split, EVALUATION_BATCH)

    def descend(self, labels: torch.Tensor, rate: float) -> None:
        recipe = self._recipe
        assert recipe is not None

        def descend(place: int) -> None:
            network = self._networks[place]
            network.learn(labels, recipe.label_smoothing)
            arrays = self._velocities[place], self._everything[place]
            network.descend(*arrays, rate, recipe.momentum, recipe.weight_decay, recipe.nesterov)

        self._of_each(descend)

    def answer(self, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        found = self._of_each(lambda place: self._networks[place].answer(labels))
        return np.stack([losses for losses, _ in found]), np.stack([hits for _, hits in found])

    def _of_each(self, act: Callable[[int], Answer]) -> list[Answer]:
        """What each network answers: those of one thread one after the other."""

        def some(places: range) -> list[Answer]:
            # What NumPy is silent about, it is silent about in one thread.
            with np.errstate(all="ignore"):
                return [act(place) for place in places]

        if self._threads is None:
            return some(self._shares[0])
        found = list(self._threads.map(some, self._shares))
        return [found[place % len(found)][place // len(found)] for place in range(len(self._networks))]

    def deliver(self) -> None:
        for network in self._networks:
            network.deliver()


class _Plain:
    """Any networks, by torch."""

    steps = "torch"

    def __init__(self, models: Sequence[nn.Module], dataset: Dataset, recipe: Recipe | None) -> None:
        self._models = list(models)
        self._dataset = dataset
        self._type = next(models[0].parameters()).dtype
        self._recipe = recipe
        self._smoothing = 0.0 if recipe is None else recipe.label_smoothing
        self._optimisers = [] if recipe is None else [optimisers.make(recipe, model, 0.0) for model in models]

    def batches(self, seed: int, stream: str, epoch: int) -> Iterator[torch.Tensor]:
        assert self._recipe is not None
        return self._shown(self._dataset.batches(seed, stream, epoch, self._recipe.batch, self._type))

    def inputs(self, split: Split) -> Iterator[torch.Tensor]:
        return self._shown(self._dataset.inputs(split, self._type, EVALUATION_BATCH))

    def _shown(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[torch.Tensor]:
        for images, labels in batches:
            self._images = images
            yield labels

    def descend(self, labels: torch.Tensor, rate: float) -> None:
        recipe = self._recipe
        assert recipe is not None
        for model, optimiser in zip(self._models, self._optimisers, strict=True):
            model.train()
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(model(self._images), labels, label_smoothing=self._smoothing).backward()
            clip_gradients(model, recipe)
            optimiser.step()

    @torch.no_grad()
    def answer(self, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        losses, hits = [], []
        for model in self._models:
            logits = model.eval()(self._images)
            losses.append(F.cross_entropy(logits, labels, reduction="none").numpy())
            hits.append((logits.argmax(dim=1) == labels).numpy())
        return np.stack(losses), np.stack(hits)

    def deliver(self) -> None:
        """The modules have them."""
