"""Training of plain and residual convolutional networks, of any pruned widths, at the speed of one core's arithmetic.

A network becomes a list of layers (:mod:`.tiled_graph`) that act on tiles of images (:mod:`.tiled_kernel`): what is
small for torch's kernels, and mostly waits for their dispatch, is not for these. Its numbers: :mod:`.lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pruneaudit.training.lanes import (
    EVALUATION_BATCH,
    LaneNetwork,
    LaneSteps,
    aligned,
    has_outputs,
    is_acted_on,
    unfit,
)
from pruneaudit.training.loop import BACKENDS, Hooks, Steps, Trainer
from pruneaudit.training.tiled_graph import CannotTileError, trace
from pruneaudit.training.tiled_layers import Batch, Call, Layer, Map, Normalisation
from pruneaudit.workloads.data import Dataset
from pruneaudit.workloads.recipes import Recipe

#: Cells between two tiles, so that the same cell of each does not fall into the same set of a cache.
_SPARE = 2


def layers_of(
    model: nn.Module, dataset: Dataset, hooks: Hooks, precision: str, recipe: Recipe
) -> Sequence[Layer] | str:
    """A network's layers in tiles, or why a training cannot run so.

    Args:
        model: The network.
        dataset: What it trains on.
        hooks: What a method adds to the training; nothing may be added.
        precision: ``fp32`` and ``fp64`` are compiled.
        recipe: What is trained.
    """
    if (found := unfit(model, hooks, precision)) is not None:
        return found
    if any(is_acted_on(module) for module in model.modules()):
        return "the network's layers do more than their code says"
    if len(dataset.shape) != 3:
        return "inputs are no images"
    try:
        layers = trace(model, dataset.shape)
    except CannotTileError as error:
        return str(error)
    if not has_outputs(layers[-1].outputs.channels, dataset):
        return "the network has fewer outputs than the data classes"
    last = len(dataset.train) % recipe.batch or recipe.batch
    if any(isinstance(layer, Normalisation) and last * layer.inputs.cells < 2 for layer in layers):
        return "a batch of one image gives a normalisation one value"
    return layers


@dataclass
class _Plan:
    """What is called for batches of one size.

    Attributes:
        forward: Calls of the forward pass.
        logits: Where they leave the logits, ``[T, classes, L]``.
        of_logits: Where the backward pass begins.
        backward: Its calls.
    """

    forward: Sequence[Call]
    logits: np.ndarray
    of_logits: np.ndarray
    backward: Sequence[Call]


class TiledNetwork(LaneNetwork):
    """A network whose parameters lie in one flat array, in the order and shapes of its module.

    Args:
        model: The network.
        layers: Its layers, as :func:`layers_of` has them.
        batch: Images of a training batch, at most.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], batch: int) -> None:
        super().__init__(model)
        # Needs llvmlite, and loads it only where something is compiled.
        from pruneaudit.training import tiled_kernel

        self._tiled = tiled_kernel
        self._layers = layers
        self._images, self._logits = self._layers[0].inputs, self._layers[-1].outputs
        self._count = -(-max(batch, EVALUATION_BATCH) // self.width)
        self._buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        self._running = {name: buffer.numpy().copy() for name, buffer in self._buffers.items()}
        self._plans: dict[tuple[int, bool], _Plan] = {}
        self._make_room()

    def fetch(self) -> None:
        """Take the module's weights and statistics."""
        super().fetch()
        for name, view in self._running.items():
            view[...] = self._buffers[name].numpy()

    def deliver(self) -> None:
        """Give the module the weights and statistics."""
        super().deliver()
        for name, view in self._running.items():
            self._buffers[name].copy_(torch.from_numpy(view))

    def room(self, batch: int) -> np.ndarray:
        """See :class:`LaneNetwork`."""
        # Where training and evaluation have theirs.
        tiles, source = -(-batch // self.width), self._images
        return source.values[:tiles].reshape(tiles, source.channels, source.high, source.wide, self.width)

    def answer(self, batch: int) -> np.ndarray:
        """See :class:`LaneNetwork`."""
        return self._pass(self._plan(batch, learns=False))

    def learn(self, labels: torch.Tensor, label_smoothing: float) -> tuple[float, int]:
        """See :class:`LaneNetwork`; statistics of normalisations change."""
        plan = self._plan(len(labels), learns=True)
        logits = self._pass(plan)
        losses, hits = self.cross_entropy(logits, labels, label_smoothing)
        plan.of_logits[...] = logits.reshape(len(logits), -1, self.width).transpose(1, 0, 2)
        for call in plan.backward:
            call()
        return float(losses.sum(dtype=np.float64)), int(hits.sum())

    def _pass(self, plan: _Plan) -> np.ndarray:
        for call in plan.forward:
            call()
        return np.ascontiguousarray(plan.logits.transpose(1, 0, 2)).reshape(plan.logits.shape[1], -1)

    def _plan(self, images: int, learns: bool) -> _Plan:
        """What is called for batches of a size."""
        if (found := self._plans.get((images, learns))) is None:
            tiles, logits = -(-images // self.width), self._logits
            batch = Batch(tiles, images, learns, self._tiled, self.weight, self.gradient, self._running)
            found = _Plan(
                [call for layer in self._layers for call in layer.forward(batch)],
                batch.of(logits.values)[:, : logits.size],
                batch.of(logits.gradients)[:, : logits.size],
                [call for layer in reversed(self._layers) for call in layer.backward(batch)] if learns else [],
            )
            self._plans[images, learns] = found
        return found

    def _make_room(self) -> None:
        """Give every map its place, and say whose gradients are added to whose."""

        def room(size: int) -> np.ndarray:
            return aligned((self._count, size, self.width), self.type)

        self._images.values = room(self._images.size)
        for layer in self._layers:
            layer.outputs.values = room(layer.outputs.size + _SPARE)
        known: set[int] = set()
        for layer in reversed(self._layers):
            for source in layer.sources:
                layer.adds.append(id(source) in known)
                known.add(id(source))
        # Gradients that were handed on are needed no more: later ones of the same size take their place, in the cache.
        free: dict[int, list[np.ndarray]] = {}

        def taken(found: Map) -> np.ndarray:
            size = found.size + _SPARE
            return free[size].pop() if free.get(size) else room(size)

        readers = [id(source) for layer in self._layers for source in layer.sources]
        self._logits.gradients = taken(self._logits)
        for layer in reversed(self._layers):
            mine = layer.outputs.gradients
            for source in layer.sources:
                if source is self._images or source.gradients is not None:
                    continue
                if isinstance(layer, Normalisation) and source is layer.inputs and readers.count(id(source)) == 1:
                    source.gradients, mine = mine, None
                else:
                    source.gradients = taken(source)
            if mine is not None:
                free.setdefault(layer.outputs.size + _SPARE, []).append(mine)


class TiledSteps(LaneSteps):
    """Epochs of a trainer, in tiles."""

    def run_epoch(self, epoch: int, step: int, total: int) -> tuple[float, int, int]:
        """Train for one epoch, as :meth:`pruneaudit.training.loop.Steps.run_epoch` says."""
        loss, hits, seen = super().run_epoch(epoch, step, total)
        batches = -(-seen // self._trainer.recipe.batch)
        for name, buffer in self._trainer.model.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.add_(batches)
        return loss, hits, seen


def _tiled(trainer: Trainer, hooks: Hooks) -> Steps | str:
    """Tiled steps of a trainer, or why there are none."""
    recipe = trainer.recipe
    found = recipe.only_torch or layers_of(trainer.model, trainer.dataset, hooks, trainer.precision, recipe)
    return found if isinstance(found, str) else TiledSteps(trainer, TiledNetwork(trainer.model, found, recipe.batch))


BACKENDS["tiled"] = _tiled
