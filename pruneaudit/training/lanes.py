"""Networks whose images lie in the lanes of vectors, and their steps on one core of a CPU.

The mathematics of :class:`pruneaudit.training.loop.TorchSteps`, in float32 or float64: the same batches, rates and
updates in the same order. Sums are taken in another order, so weights agree with torch's to rounding, not to the bit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from torch import nn

from pruneaudit.measure.accuracy import Score
from pruneaudit.training.loop import Hooks, Trainer
from pruneaudit.training.precision import weight_type
from pruneaudit.workloads.data import Dataset, Part, Split

#: Images of an evaluation batch: their activations fit into the cache.
EVALUATION_BATCH = 128


def unfit(model: nn.Module, hooks: Hooks, precision: str) -> str | None:
    """Why no network can run so in a training, whatever its layers are, or None.

    Args:
        model: The network.
        hooks: What a method adds to the training; nothing may be added.
        precision: ``fp32`` and ``fp64`` are compiled.
    """
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed: pip install 'pruneaudit[compiled]'"
    if precision not in ("fp32", "fp64"):
        return f"only fp32 and fp64 are compiled, not {precision}"
    if any(hook is not None for hook in vars(hooks).values()):
        return "a method's hooks take part in every step"
    parameters = list(model.parameters())
    if any(parameter.device.type != "cpu" for parameter in parameters):
        return "the network is not on the CPU"
    if any(parameter.dtype != weight_type(precision) for parameter in parameters):
        return f"weights are not those of {precision}"
    if not all(parameter.requires_grad for parameter in parameters):
        return "some parameters are frozen"
    return None


def is_acted_on(module: nn.Module) -> bool:
    """Whether a module's code was replaced, or somebody other than the harness acts in it."""
    tensors = list(module.parameters(recurse=False))
    acted = [module._forward_hooks, module._backward_hooks, module._backward_pre_hooks]
    acted += [tensor._backward_hooks for tensor in tensors] + [tensor._post_accumulate_grad_hooks for tensor in tensors]
    foreign = [hook for hook in module._forward_pre_hooks.values() if hook.__module__ != "pruneaudit.training.metering"]
    return "forward" in vars(module) or any(acted) or bool(foreign)


def has_outputs(count: int, dataset: Dataset) -> bool:
    """Whether every label of a dataset is one of so many outputs: compiled code does not check."""
    parts = (dataset.train, dataset.validation, dataset.test)
    return all(0 <= int(label) < count for part in parts for label in part.labels.unique())


class LaneNetwork:
    """A network whose parameters lie in one flat array, in the order and shapes of its module.

    Args:
        model: The network.

    Attributes:
        kernel: :mod:`.ends`.
        type: ``torch.float32`` or ``torch.float64``.
        width: Images of a tile.
        weights: All parameters, once :meth:`fetch` was called.
        gradients: Theirs, as the last :meth:`learn` left them.
        weight: Views of ``weights`` by name.
        gradient: Views of ``gradients`` by name.
    """

    def __init__(self, model: nn.Module) -> None:
        # Needs llvmlite, and loads it only where something is compiled.
        from pruneaudit.training import ends

        self.kernel = ends
        self._parameters = dict(model.named_parameters())
        self.type = next(model.parameters()).dtype
        self.weights = self.zeros()
        self.gradients = self.zeros()
        self.weight = self.parts(self.weights)
        self.gradient = self.parts(self.gradients)
        self.width = ends.lanes(self.weights.itemsize)

    def room(self, batch: int) -> np.ndarray:
        """Where so many images are put before a pass, ``[T, C, H, W, L]``."""
        raise NotImplementedError

    def answer(self, batch: int) -> np.ndarray:
        """Logits ``[classes, N]`` of images that were shown last; columns from ``batch`` on belong to no image."""
        raise NotImplementedError

    def learn(self, labels: torch.Tensor, label_smoothing: float) -> tuple[float, int]:
        """Forward and backward pass of images that were shown last, with their labels ``[B]``; changes no weights.

        Returns:
            Sum of the images' losses, and how many of them were classified correctly.
        """
        raise NotImplementedError

    def show(self, images: torch.Tensor) -> None:
        """Take images ``[B, C, H, W]`` in, for the next pass."""
        self.kernel.into_lanes(images.numpy(), self.room(len(images)))

    def zeros(self) -> np.ndarray:
        """A flat array with a place for every parameter."""
        return aligned((sum(parameter.numel() for parameter in self._parameters.values()),), self.type)

    def parts(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of a flat array by the names of parameters, in their shapes."""
        views, start = {}, 0
        for name, parameter in self._parameters.items():
            views[name] = flat[start : start + parameter.numel()].reshape(parameter.shape)
            start += parameter.numel()
        return views

    def fetch(self) -> None:
        """Take the module's weights."""
        for name, view in self.weight.items():
            view[...] = self._parameters[name].detach().numpy()

    def deliver(self) -> None:
        """Give the module the weights."""
        for name, view in self.weight.items():
            self._parameters[name].detach().copy_(torch.from_numpy(view))

    def cross_entropy(
        self, logits: np.ndarray, labels: torch.Tensor, label_smoothing: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses ``[B]`` and hits ``[B]``; the logits become the gradients of the mean loss."""
        losses, hits = np.empty(len(labels), logits.dtype), np.empty(len(labels), bool)
        self.kernel.cross_entropy(logits, labels.numpy(), logits.dtype.type(label_smoothing), losses, hits)
        return losses, hits

    def descend(
        self, velocity: np.ndarray, mask: np.ndarray, rate: float, momentum: float, decay: float, nesterov: bool
    ) -> None:
        """One step of SGD along :attr:`gradients`, as ``torch.optim.SGD`` defines it.

        Args:
            velocity: Momentum, as flat as the weights; changed in place.
            mask: What gradients are multiplied by.
            rate: Learning rate.
            momentum: Share of the velocity that stays.
            decay: Weight decay.
            nesterov: Whether momentum is Nesterov's.
        """
        kind = self.weights.dtype.type
        self.kernel.descend(
            self.weights, self.gradients, velocity, mask, kind(rate), kind(momentum), kind(decay), nesterov
        )


class Showing:
    """Shows a network the images of a dataset: the values of :meth:`Dataset.batches` and :meth:`Dataset.inputs`.

    Images in memory are cropped, mirrored and normalised as they are put into lanes: torch's operations on them took
    longer than a small network's passes.

    Args:
        network: Who is shown them.
        dataset: The images.
    """

    def __init__(self, network: LaneNetwork, dataset: Dataset) -> None:
        self._network = network
        self._dataset = dataset
        self._scaling = [values.numpy() for values in dataset.scaling(network.type, torch.device("cpu"))]

    def batches(self, seed: int, stream: str, epoch: int, batch: int) -> Iterator[torch.Tensor]:
        """An augmented pass over the training split; gives the labels ``[B]`` of each batch once it is shown."""
        dataset = self._dataset
        if dataset.obstacle:
            for images, labels in dataset.batches(seed, stream, epoch, batch, self._network.type):
                self._network.show(images)
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
            for images, labels in dataset.inputs(split, self._network.type, batch):
                self._network.show(images)
                yield labels
            return
        for index in torch.arange(len(split)).split(batch):
            nowhere = torch.zeros(len(index), 2, dtype=torch.int64)
            self._show(split.images, index, nowhere, torch.zeros(len(index), dtype=torch.bool))
            yield split.labels[index]

    def _show(self, images: torch.Tensor, index: torch.Tensor, shift: torch.Tensor, mirrored: torch.Tensor) -> None:
        arrays = (tensor.contiguous().numpy() for tensor in (images, index, shift, mirrored))
        self._network.kernel.crops_into_lanes(*arrays, *self._scaling, self._network.room(len(index)))


def aligned(shape: tuple[int, ...], kind: torch.dtype) -> np.ndarray:
    """Zeros that start where a cache line does, so that no vector spans two: torch aligns, NumPy does not."""
    return torch.zeros(shape, dtype=kind).numpy()


class LaneSteps:
    """Epochs of a trainer, compiled; between two of them weights and momentum are where torch's would be.

    Args:
        trainer: Whose network, data, recipe, optimiser and meter it works on.
        network: Its network.
    """

    def __init__(self, trainer: Trainer, network: LaneNetwork) -> None:
        self._trainer = trainer
        self._network = network
        self._showing = Showing(network, trainer.dataset)
        # Finding out which libraries are loaded takes milliseconds, a small network's epoch not many more.
        self._libraries = ThreadpoolController()
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
        with self._as_torch_computes(), trainer.meter.noting({}, trainer.optimiser):
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
        with self._as_torch_computes():
            for labels in self._showing.inputs(part, EVALUATION_BATCH):
                batch_losses, hits = network.cross_entropy(network.answer(len(labels)), labels)
                losses.append(batch_losses.sum(dtype=np.float64))
                correct.append(hits)
        right = np.concatenate(correct)
        return Score(accuracy=100.0 * int(right.sum()) / len(part), loss=float(sum(losses)) / len(part), correct=right)

    @contextmanager
    def _as_torch_computes(self) -> Iterator[None]:
        """NumPy takes as many threads as torch, one where several trainings run at once, and is as silent about NaN."""
        with self._libraries.limit(limits=torch.get_num_threads(), user_api="blas"), np.errstate(all="ignore"):
            yield

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
