"""Plain and residual convolutional networks, of any pruned widths, at the speed of one core's arithmetic.

A network becomes a list of layers (:mod:`.tiled_graph`) that act on tiles of images (:mod:`.tiled_kernel`), one image
in each lane of a vector: what is small for torch's kernels, and mostly waits for their dispatch, is not for these.

The mathematics is torch's, in float32 or float64. Sums are taken in another order, so weights agree with torch's to
rounding, not to the bit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from pruneaudit.training.loop import Hooks
from pruneaudit.training.precision import weight_type
from pruneaudit.training.tiled_graph import CannotTileError, trace
from pruneaudit.training.tiled_layers import Batch, Call, Convolution, Layer, Map, Normalisation
from pruneaudit.workloads.data import Dataset
from pruneaudit.workloads.recipes import Recipe

#: Images of an evaluation batch: their activations fit into the cache.
EVALUATION_BATCH = 128
#: Bytes of maps and their gradients that tiles which pass together may take: they stay in a core's second-level cache.
_CACHE = 1 << 20
#: Cells between two tiles, so that the same cell of each does not fall into the same set of a cache.
_SPARE = 2


def layers_of(
    model: nn.Module, dataset: Dataset, hooks: Hooks, precision: str, recipe: Recipe | None
) -> Sequence[Layer] | str:
    """A network's layers in tiles, or why it cannot run so.

    Args:
        model: The network.
        dataset: What it sees.
        hooks: What a method adds to the training; nothing may be added.
        precision: ``fp32`` and ``fp64`` are compiled.
        recipe: How it is trained; None: it is only asked.
    """
    if recipe is not None and recipe.only_torch:
        return recipe.only_torch
    if (found := unfit(model, hooks, precision)) is not None:
        return found
    if len(dataset.shape) != 3:
        return "inputs are no images"
    try:
        layers = trace(model, dataset.shape)
    except CannotTileError as error:
        return str(error)
    if not _has_outputs(layers[-1].outputs.channels, dataset):
        return "the network has fewer outputs than the data classes"
    if recipe is not None:
        last = len(dataset.train) % recipe.batch or recipe.batch
        if any(isinstance(layer, Normalisation) and last * layer.inputs.cells < 2 for layer in layers):
            return "a batch of one image gives a normalisation one value"
    return layers


def unfit(model: nn.Module, hooks: Hooks, precision: str) -> str | None:
    """Why a network cannot run so, whatever its layers are, or None; see :func:`layers_of`."""
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
    if any(_is_acted_on(module) for module in model.modules()):
        return "the network's layers do more than their code says"
    return None


def _is_acted_on(module: nn.Module) -> bool:
    """Whether a module's code was replaced, or somebody other than the harness acts in it."""
    tensors = list(module.parameters(recurse=False))
    acted = [module._forward_hooks, module._backward_hooks, module._backward_pre_hooks]
    acted += [tensor._backward_hooks for tensor in tensors] + [tensor._post_accumulate_grad_hooks for tensor in tensors]
    foreign = [hook for hook in module._forward_pre_hooks.values() if hook.__module__ != "pruneaudit.training.metering"]
    return "forward" in vars(module) or any(acted) or bool(foreign)


def _has_outputs(count: int, dataset: Dataset) -> bool:
    """Whether every label of a dataset is one of so many outputs: compiled code does not check."""
    parts = (dataset.train, dataset.validation, dataset.test)
    return all(0 <= int(label) < count for part in parts for label in part.labels.unique())


class Tiles:
    """A network's layers, and room for their activations and gradients: of networks that act in turns, one is enough.

    Where images do not meet in the layers, as they do in a normalisation, a batch passes forward and backward block by
    block, each in the room of the one before, which never leaves the cache. Sums over the batch keep their order, so
    that the bits are those of a batch that passes as a whole.

    Args:
        layers: The layers, as :func:`layers_of` has them; their maps get their places here.
        batch: Images of a batch, at most; evaluation's may be shown anyway.
        kind: ``torch.float32`` or ``torch.float64``.
        beside: Those of networks of another form that see the same images: these lie in the same place, and are shown
            to all at once.

    Attributes:
        layers: As given.
        type: ``kind``.
        width: Images of a tile.
        block: Tiles that pass together.
        logits: The outputs of the last layer.
    """

    def __init__(self, layers: Sequence[Layer], batch: int, kind: torch.dtype, beside: Tiles | None = None) -> None:
        # Needs llvmlite, and loads it only where something is compiled.
        from pruneaudit.training import ends

        self._ends = ends
        self.layers = layers
        self.type = kind
        self.width = ends.lanes(torch.empty((), dtype=kind).itemsize)
        self._images, self.logits = layers[0].inputs, layers[-1].outputs
        #: Weights of the network that acts, and what is called for them.
        self.stage: _Stage | None = None
        self._count = -(-max(batch, EVALUATION_BATCH) // self.width)
        sizes = 2 * sum(layer.outputs.size for layer in layers) * self.width * torch.empty((), dtype=kind).itemsize
        meets = any(isinstance(layer, Normalisation) for layer in layers)
        self.block = self._count if meets else min(self._count, max(1, _CACHE // sizes))
        for layer in layers:
            if isinstance(layer, Convolution):
                layer.waits = self.block < self._count and not layer.sums_by_tile
        self._make_room()
        if beside is not None:
            self._images.values = beside._images.values

    def room(self, batch: int) -> np.ndarray:
        """Where so many images are put before a pass, ``[T, C, H, W, L]``."""
        # Where training and evaluation have theirs.
        tiles, source = -(-batch // self.width), self._images
        return source.values[:tiles].reshape(tiles, source.channels, source.high, source.wide, self.width)

    def show(self, images: torch.Tensor) -> None:
        """Take images ``[B, C, H, W]`` in, for the next passes."""
        self._ends.into_lanes(images.numpy(), self.room(len(images)))

    def _make_room(self) -> None:
        """Give every map its place, and say whose gradients are added to whose."""

        def room(size: int, tiles: int) -> np.ndarray:
            return aligned((tiles, size, self.width), self.type)

        # What is read again when the whole batch has passed.
        waiting = [layer for layer in self.layers if isinstance(layer, Convolution) and layer.waits]
        kept, kept_gradients = (
            {id(found) for found in maps}
            for maps in ([layer.inputs for layer in waiting], [layer.outputs for layer in waiting])
        )
        self._images.values = room(self._images.size, self._count)
        for layer in self.layers:
            layer.outputs.values = room(
                layer.outputs.size + _SPARE, self._count if id(layer.outputs) in kept else self.block
            )
        known: set[int] = set()
        for layer in reversed(self.layers):
            for source in layer.sources:
                layer.adds.append(id(source) in known)
                known.add(id(source))
        # Gradients that were handed on are needed no more: later ones of the same size take their place, in the cache.
        free: dict[int, list[np.ndarray]] = {}

        def taken(found: Map) -> np.ndarray:
            size = found.size + _SPARE
            if id(found) in kept_gradients:
                return room(size, self._count)
            return free[size].pop() if free.get(size) else room(size, self.block)

        readers = [id(source) for layer in self.layers for source in layer.sources]
        self.logits.gradients = taken(self.logits)
        for layer in reversed(self.layers):
            mine = layer.outputs.gradients
            for source in layer.sources:
                if source is self._images or source.gradients is not None:
                    continue
                if isinstance(layer, Normalisation) and source is layer.inputs and readers.count(id(source)) == 1:
                    source.gradients, mine = mine, None
                else:
                    source.gradients = taken(source)
            if mine is not None and id(layer.outputs) not in kept_gradients:
                free.setdefault(layer.outputs.size + _SPARE, []).append(mine)
        for layer in self.layers:
            layer.make_room()


@dataclass
class _Plan:
    """What is called for batches of one size.

    Attributes:
        calls: All passes, part by part.
        labels: Where they find the labels, ``[B]``.
        losses: Where they leave the losses.
        hits: Where they leave the hits.
    """

    calls: Sequence[Call]
    labels: np.ndarray
    losses: np.ndarray
    hits: np.ndarray


@dataclass
class _Stage:
    """Where the network that acts has its parameters: calls know addresses, and are made once for all networks.

    Attributes:
        weights: All parameters, flat.
        gradients: Theirs.
        weight: Views of ``weights`` by name.
        gradient: Views of ``gradients`` by name.
        running: Statistics of normalisations by name.
        owner: Whose they are.
        plans: By the size of a batch and the smoothing of its labels; None: they are not trained on.
    """

    weights: np.ndarray
    gradients: np.ndarray
    weight: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]
    running: dict[str, np.ndarray]
    owner: TiledNetwork
    plans: dict[tuple[int, float | None], _Plan] = field(default_factory=dict)


class TiledNetwork:
    """A network whose parameters lie in one flat array, in the order and shapes of its module.

    Args:
        model: The network.
        tiles: Its layers, or those of a network of the same form that acts at other times: images that one of them was
            shown need not be shown to the other.

    Attributes:
        tiles: As given.
    """

    def __init__(self, model: nn.Module, tiles: Tiles) -> None:
        # Need llvmlite, and load it only where something is compiled.
        from pruneaudit.training import ends, tiled_kernel

        self._ends, self._tiled = ends, tiled_kernel
        self.tiles = tiles
        self._parameters = dict(model.named_parameters())
        buffers = dict(model.named_buffers())
        self._buffers = {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
        self._counters = [buffer for name, buffer in buffers.items() if name.endswith("num_batches_tracked")]
        self._learnt = 0
        #: Weights and statistics while another network acts.
        self._kept: list[np.ndarray] = []
        if tiles.stage is None:
            weights, gradients, running = self.zeros(), self.zeros(), self._statistics()
            tiles.stage = _Stage(weights, gradients, self.parts(weights), self.parts(gradients), running, self)
        else:
            self._kept = [self.zeros(), *self._statistics().values()]

    def answer(self, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Losses and hits ``[B]`` of images that were shown last, with their labels ``[B]``."""
        plan = self._run(labels, None)
        return plan.losses.copy(), plan.hits.copy()

    def learn(self, labels: torch.Tensor, label_smoothing: float) -> tuple[float, int]:
        """Forward and backward pass of images that were shown last, with their labels ``[B]``.

        It changes no weights, but the statistics of normalisations; gradients stay until another network acts.

        Returns:
            Sum of the images' losses, and how many of them were classified correctly.
        """
        plan = self._run(labels, label_smoothing)
        self._learnt += 1
        return float(plan.losses.sum(dtype=np.float64)), int(plan.hits.sum())

    def descend(
        self, velocity: np.ndarray, mask: np.ndarray, rate: float, momentum: float, decay: float, nesterov: bool
    ) -> None:
        """One step of SGD along the gradients that :meth:`learn` left, as ``torch.optim.SGD`` defines it.

        Args:
            velocity: Momentum, as flat as the weights; changed in place.
            mask: What gradients are multiplied by.
            rate: Learning rate.
            momentum: Share of the velocity that stays.
            decay: Weight decay.
            nesterov: Whether momentum is Nesterov's.
        """
        stage = self._enter()
        kind, arrays = stage.weights.dtype.type, (stage.weights, stage.gradients, velocity, mask)
        self._ends.descend(*arrays, kind(rate), kind(momentum), kind(decay), nesterov)

    def fetch(self) -> None:
        """Take the module's weights and statistics."""
        stage = self._enter()
        for name, view in stage.weight.items():
            view[...] = self._parameters[name].detach().numpy()
        for name, view in stage.running.items():
            view[...] = self._buffers[name].numpy()
        self._learnt = 0

    def deliver(self) -> None:
        """Give the module the weights and statistics, and count the batches that its normalisations have seen."""
        stage = self._enter()
        for name, view in stage.weight.items():
            self._parameters[name].detach().copy_(torch.from_numpy(view))
        for name, view in stage.running.items():
            self._buffers[name].copy_(torch.from_numpy(view))
        for counter in self._counters:
            counter.add_(self._learnt)
        self._learnt = 0

    def zeros(self) -> np.ndarray:
        """A flat array with a place for every parameter."""
        return aligned((sum(parameter.numel() for parameter in self._parameters.values()),), self.tiles.type)

    def parts(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of a flat array by the names of parameters, in their shapes."""
        views, start = {}, 0
        for name, parameter in self._parameters.items():
            views[name] = flat[start : start + parameter.numel()].reshape(parameter.shape)
            start += parameter.numel()
        return views

    def _statistics(self) -> dict[str, np.ndarray]:
        return {name: buffer.numpy().copy() for name, buffer in self._buffers.items()}

    def _enter(self) -> _Stage:
        """Take the place of the network that acted before."""
        stage = self.tiles.stage
        assert stage is not None
        if stage.owner is not self:
            shown = [stage.weights, *stage.running.values()]
            stage.owner._kept = [array.copy() for array in shown]
            for array, kept in zip(shown, self._kept, strict=True):
                array[...] = kept
            self._kept, stage.owner = [], self
        return stage

    def _run(self, labels: torch.Tensor, smoothing: float | None) -> _Plan:
        stage, key = self._enter(), (len(labels), smoothing)
        if key not in stage.plans:
            stage.plans[key] = self._plan(stage, *key)
        plan = stage.plans[key]
        plan.labels[...] = labels.numpy()
        for call in plan.calls:
            call()
        return plan

    def _plan(self, stage: _Stage, images: int, smoothing: float | None) -> _Plan:
        """What is called for batches of a size; they are trained on where there is a smoothing of labels."""
        tiles, kernel, learns = self.tiles, self._tiled, smoothing is not None
        count, width, kind = -(-images // tiles.width), tiles.width, stage.weights.dtype
        calls: list[Call] = []
        plan = _Plan((), np.zeros(images, np.int64), np.zeros(images, kind), np.zeros(images, bool))

        def batch(first: int, some: int) -> Batch:
            part = kernel.FIRST * (first == 0) + kernel.LAST * (first + some == count)
            seen = min((first + some) * width, images) - first * width
            mine = (stage.weight, stage.gradient, stage.running)
            return Batch(first, some, seen, part, tiles.block, learns, kernel, *mine)

        for first in range(0, count, tiles.block):
            some = batch(first, min(tiles.block, count - first))
            calls += [call for layer in tiles.layers for call in layer.forward(some)]
            seen = slice(first * width, first * width + some.images)
            logits, of_logits = some.of(tiles.logits.values), some.of(tiles.logits.gradients)
            told = (plan.losses[seen], plan.hits[seen], plan.labels[seen])
            share = kind.type(smoothing or 0.0)
            calls.append(self._ends.cross_entropy(logits, of_logits, *told, tiles.logits.size, images, share))
            if learns:
                calls += [call for layer in reversed(tiles.layers) for call in layer.backward(some)]
        if learns:
            calls += [call for layer in reversed(tiles.layers) for call in layer.close(batch(0, count))]
        plan.calls = self._ends.chained(calls)
        return plan


def aligned(shape: tuple[int, ...], kind: torch.dtype) -> np.ndarray:
    """Zeros that start where a cache line does, so that no vector spans two: torch aligns, NumPy does not."""
    return torch.zeros(shape, dtype=kind).numpy()
