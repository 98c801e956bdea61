"""Epochs of a trainer by a network in tiles, on one core of a CPU.

What :class:`pruneaudit.training.loop.TorchSteps` does: the same batches, rates and updates in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pruneaudit.catalog.settings import RETIRED
from pruneaudit.errors import ConfigError
from pruneaudit.measure.accuracy import Score
from pruneaudit.training.loop import BACKENDS, Hooks, Steps, Trainer
from pruneaudit.training.tiled import EVALUATION_BATCH, TiledNetwork, Tiles, layers_of
from pruneaudit.training.tiled_layers import Layer
from pruneaudit.workloads.data import Dataset, Part, Split


class Showing:
    """Shows networks the images of a dataset: the values of :meth:`Dataset.batches` and :meth:`Dataset.inputs`.

    Images in memory are cropped, mirrored and normalised as they are put into lanes: torch's operations on them took
    longer than a small network's passes.

    Args:
        tiles: Where they are put.
        dataset: The images.
    """

    def __init__(self, tiles: Tiles, dataset: Dataset) -> None:
        # Needs llvmlite, and loads it only where something is compiled.
        from pruneaudit.training import ends

        self._ends = ends
        self._tiles = tiles
        self._dataset = dataset
        self._mean, self._scale = (values.numpy() for values in dataset.scaling(tiles.type, torch.device("cpu")))

    def batches(self, seed: int, stream: str, epoch: int, batch: int) -> Iterator[torch.Tensor]:
        """An augmented pass over the training split; gives the labels ``[B]`` of each batch once it is shown."""
        dataset = self._dataset
        if dataset.obstacle:
            for images, labels in dataset.batches(seed, stream, epoch, batch, self._tiles.type):
                self._tiles.show(images)
                yield labels
            return
        shift, flip = dataset.draws(seed, stream, epoch)
        mirrored = torch.zeros(len(shift), dtype=torch.bool) if flip is None else flip
        for index in dataset.order(seed, stream, epoch).split(batch):
            self._show(dataset.padded, index, shift[index], mirrored[index])
            yield dataset.train.labels[index]

    def inputs(self, split: Split, batch: int) -> Iterator[torch.Tensor]:
        """A pass over a split in order, without augmentation; gives labels as :meth:`batches` does."""
        dataset = self._dataset
        if not isinstance(split, Part) or dataset.obstacle:
            for images, labels in dataset.inputs(split, self._tiles.type, batch):
                self._tiles.show(images)
                yield labels
            return
        for index in torch.arange(len(split)).split(batch):
            nowhere = torch.zeros(len(index), 2, dtype=torch.int64)
            self._show(split.images, index, nowhere, torch.zeros(len(index), dtype=torch.bool))
            yield split.labels[index]

    def _show(self, images: torch.Tensor, index: torch.Tensor, shift: torch.Tensor, mirrored: torch.Tensor) -> None:
        arrays = [tensor.contiguous().numpy() for tensor in (images, index, shift, mirrored)]
        arrays += [self._mean, self._scale, self._tiles.room(len(index))]
        self._ends.crops_into_lanes(*arrays)


class TiledSteps:
    """Epochs of a trainer, compiled; between two of them weights and momentum are where torch's would be.

    Args:
        trainer: Whose network, data, recipe, optimiser and meter it works on.
        layers: The network's, as :func:`layers_of` has them.
    """

    def __init__(self, trainer: Trainer, layers: Sequence[Layer]) -> None:
        self._trainer = trainer
        tiles = Tiles(layers, trainer.recipe.batch, next(trainer.model.parameters()).dtype)
        self._network = TiledNetwork(trainer.model, tiles)
        self._showing = Showing(tiles, trainer.dataset)
        self._velocity = self._network.zeros()
        self._mask = np.ones_like(self._velocity)
        self._velocities = self._network.parts(self._velocity)
        masks = self._network.parts(self._mask)
        for name, mask in trainer.masks.items():
            masks[f"{name}.weight"][...] = mask.numpy()

    def run_epoch(self, epoch: int, step: int, total: int) -> tuple[float, int, int]:
        """Train for one epoch, as :meth:`pruneaudit.training.loop.Steps.run_epoch` says."""
        trainer, network, recipe = self._trainer, self._network, self._trainer.recipe
        loss, hits, seen = 0.0, 0, 0
        rates: list[float] = []
        trainer.optimiser.zero_grad(set_to_none=True)
        self._fetch()
        with np.errstate(all="ignore"), trainer.meter.noting({}, trainer.optimiser):
            for labels in self._showing.batches(trainer.seed, trainer.stream, epoch, recipe.batch):
                if step >= total:
                    break
                rate = recipe.rate(epoch, step, trainer.per_epoch)
                batch_loss, batch_hits = network.learn(labels, recipe.label_smoothing)
                network.descend(self._velocity, self._mask, rate, recipe.momentum, recipe.weight_decay, recipe.nesterov)
                rates.append(rate)
                loss, hits, seen, step = loss + batch_loss, hits + batch_hits, seen + len(labels), step + 1
            for group in trainer.optimiser.param_groups:
                group["lr"] = rates[-1]
            trainer.meter.note_steps(trainer.optimiser, rates)
        self._deliver()
        consumption = trainer.meter.consumption
        consumption.training_samples += seen
        # The first batch of an epoch is the largest one.
        consumption.batch = max(consumption.batch, min(recipe.batch, seen))
        # All layers saw these images, which no hook on them could count.
        trainer.meter.restore(consumption)
        return loss, hits, seen

    def score(self, part: Split) -> Score:
        """Classify a split, as :func:`pruneaudit.measure.accuracy.evaluate` does; weights are the module's."""
        network = self._network
        network.fetch()
        losses, correct = [], []
        # As silent about NaN as torch.
        with np.errstate(all="ignore"):
            for labels in self._showing.inputs(part, EVALUATION_BATCH):
                batch_losses, hits = network.answer(labels)
                losses.append(batch_losses.sum(dtype=np.float64))
                correct.append(hits)
        right = np.concatenate(correct)
        return Score(accuracy=100.0 * int(right.sum()) / len(part), loss=float(sum(losses)) / len(part), correct=right)

    def _fetch(self) -> None:
        """Take weights and momentum."""
        self._network.fetch()
        for name, parameter in self._trainer.model.named_parameters():
            buffer = self._trainer.optimiser.state[parameter].get("momentum_buffer")
            self._velocities[name][...] = 0 if buffer is None else buffer.numpy()

    def _deliver(self) -> None:
        """Give back weights and momentum."""
        self._network.deliver()
        if self._trainer.recipe.momentum:
            for name, parameter in self._trainer.model.named_parameters():
                buffer = torch.empty_like(parameter, requires_grad=False)
                buffer.copy_(torch.from_numpy(self._velocities[name]))
                self._trainer.optimiser.state[parameter]["momentum_buffer"] = buffer


def _tiled(trainer: Trainer, hooks: Hooks) -> Steps | str:
    """Tiled steps of a trainer, or why there are none."""
    found = layers_of(trainer.model, trainer.dataset, hooks, trainer.precision, trainer.recipe)
    return found if isinstance(found, str) else TiledSteps(trainer, found)


def _retired(trainer: Trainer, hooks: Hooks) -> Steps | str:
    """Nothing else gives the bits of a backend that is no more."""
    raise ConfigError(f"nothing trains as {trainer.backend} did any more; tiled trains such networks")


BACKENDS["tiled"] = _tiled
BACKENDS.update(dict.fromkeys(RETIRED, _retired))
