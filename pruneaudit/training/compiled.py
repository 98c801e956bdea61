"""Training of LeNet-5, of any pruned widths, on one core several times faster than torch does it.

The mathematics of :class:`pruneaudit.training.loop.TorchSteps`, in float32 or float64: the same batches, rates and
updates in the same order. Sums are taken in another order, so weights agree with torch's to rounding, not to the bit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from torch import nn

from pruneaudit.measure.accuracy import Score
from pruneaudit.training.loop import BACKENDS, Hooks, Steps, Trainer
from pruneaudit.training.precision import weight_type
from pruneaudit.workloads.data import Dataset, Split
from pruneaudit.workloads.models.lenet import LeNet5

_LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")
_SIDE = 32
#: Images of an evaluation batch: their activations fit into the cache.
_EVALUATION_BATCH = 128


def obstacle(model: nn.Module, dataset: Dataset, hooks: Hooks, precision: str) -> str | None:
    """Why a training cannot run compiled, or None where it can.

    Args:
        model: The network.
        dataset: What it trains on.
        hooks: What a method adds to the training; nothing may be added.
        precision: ``fp32`` and ``fp64`` are compiled.
    """
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed: pip install 'pruneaudit[compiled]'"
    if precision not in ("fp32", "fp64"):
        return f"only fp32 and fp64 are compiled, not {precision}"
    if any(hook is not None for hook in vars(hooks).values()):
        return "a method's hooks take part in every step"
    if type(model) is not LeNet5:
        return f"only LeNet5 is compiled, not {type(model).__name__}"
    if dataset.shape[1:] != (_SIDE, _SIDE):
        return f"inputs are {' × '.join(map(str, dataset.shape[1:]))}, not {_SIDE} × {_SIDE}"
    parameters = list(model.parameters())
    if any(parameter.device.type != "cpu" for parameter in parameters):
        return "the network is not on the CPU"
    if any(parameter.dtype != weight_type(precision) for parameter in parameters):
        return f"weights are not those of {precision}"
    if not all(parameter.requires_grad for parameter in parameters):
        return "some parameters are frozen"
    expected = [f"{layer}.{name}" for layer in _LAYERS for name in ("weight", "bias")]
    if [name for name, _ in model.named_parameters()] != expected or any(True for _ in model.buffers()):
        return "the network has other parameters than LeNet5"
    if any(_is_changed(module) for module in model.modules()):
        return "the network's layers do more than LeNet5's"
    if not _fits(model, dataset):
        return "the network's layers do not fit each other, or the data"
    return None


def _is_changed(module: nn.Module) -> bool:
    """Whether a module is not what it was made as, or somebody other than the harness acts in it."""
    tensors = list(module.parameters(recurse=False))
    acted = [module._forward_hooks, module._backward_hooks, module._backward_pre_hooks]
    acted += [tensor._backward_hooks for tensor in tensors] + [tensor._post_accumulate_grad_hooks for tensor in tensors]
    foreign = [hook for hook in module._forward_pre_hooks.values() if hook.__module__ != "pruneaudit.training.metering"]
    return (
        type(module) not in (LeNet5, nn.Conv2d, nn.Linear) or "forward" in vars(module) or any(acted) or bool(foreign)
    )


def _fits(model: LeNet5, dataset: Dataset) -> bool:
    """Whether convolutions are LeNet5's, and each layer takes what comes before: compiled code does not check."""
    plain = {"kernel_size": (5, 5), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    shapes = [tuple(model.get_parameter(f"{layer}.weight").shape) for layer in _LAYERS]
    parts = (dataset.train, dataset.validation, dataset.test)
    return (
        all(getattr(model.get_submodule(layer), key) == value for layer in _LAYERS[:3] for key, value in plain.items())
        and all(before[0] == after[1] for before, after in pairwise(shapes))
        and shapes[0][1] == dataset.channels
        and all(0 <= int(label) < shapes[-1][0] for part in parts for label in part.labels.unique())
    )


class CompiledLeNet:
    """A LeNet-5 whose parameters lie in one flat array, in the order and shapes of its module.

    Args:
        model: The network; :func:`obstacle` found none.
        beside: A network of the same shape that acts at other times: activations then lie in the same place, and
            images that one of them was shown need not be shown to the other.

    Attributes:
        type: ``torch.float32`` or ``torch.float64``.
        weights: All parameters, once :meth:`fetch` was called.
        gradients: Theirs, as the last :meth:`step` left them.
    """

    def __init__(self, model: nn.Module, beside: CompiledLeNet | None = None) -> None:
        # Needs Numba, and loads it only where something is compiled.
        from pruneaudit.training import lenet_kernel

        self._kernel = lenet_kernel
        self._parameters = dict(model.named_parameters())
        self.type = next(model.parameters()).dtype
        self._spaces: dict[int, _Space] = {} if beside is None else beside._spaces
        self.weights = self.zeros()
        self.gradients = self.zeros()
        self._weight = self.parts(self.weights)
        self._gradient = self.parts(self.gradients)

    def zeros(self) -> np.ndarray:
        """A flat array with a place for every parameter."""
        return _aligned((sum(parameter.numel() for parameter in self._parameters.values()),), self.type)

    def parts(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of a flat array by the names of parameters, in their shapes."""
        views, start = {}, 0
        for name, parameter in self._parameters.items():
            views[name] = flat[start : start + parameter.numel()].reshape(parameter.shape)
            start += parameter.numel()
        return views

    def fetch(self) -> None:
        """Take the module's weights."""
        for name, view in self._weight.items():
            view[...] = self._parameters[name].detach().numpy()

    def deliver(self) -> None:
        """Give the module the weights."""
        for name, view in self._weight.items():
            self._parameters[name].detach().copy_(torch.from_numpy(view))

    def show(self, images: torch.Tensor) -> None:
        """Take images ``[B, C, 32, 32]`` in, for the next pass."""
        self._kernel.into_lanes(images.permute(0, 2, 3, 1).contiguous().numpy(), self._space(len(images)).images)

    def forward(self, images: torch.Tensor) -> np.ndarray:
        """Logits ``[classes, N]`` of images ``[B, C, 32, 32]``; columns from B on belong to no image."""
        self.show(images)
        return self.answer(len(images))

    def answer(self, batch: int) -> np.ndarray:
        """The same of images that were shown last."""
        space, weight, kernel = self._space(batch), self._weight, self._kernel
        first, second, rows = space.first, space.second, space.rows
        kernel.forward1(space.images, weight["conv1.weight"], weight["conv1.bias"], first.outputs, first.winner, rows)
        kernel.forward2(
            first.outputs, weight["conv2.weight"], weight["conv2.bias"], second.outputs, second.winner, rows
        )
        _by_tile(space.features, second.outputs)[...] = second.outputs
        self._dense("conv3", space.features, space.hidden3)
        self._dense("fc1", np.maximum(space.hidden3, 0, out=space.hidden3), space.hidden4)
        self._dense("fc2", np.maximum(space.hidden4, 0, out=space.hidden4), space.logits)
        return space.logits

    def step(self, images: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> tuple[float, int]:
        """Forward and backward pass of a batch; changes no weights.

        Returns:
            Sum of the images' losses, and how many of them were classified correctly.
        """
        self.show(images)
        return self.learn(labels, label_smoothing)

    def learn(self, labels: torch.Tensor, label_smoothing: float) -> tuple[float, int]:
        """The same on images that were shown last, with their labels ``[B]``."""
        losses, hits = self.cross_entropy(self.answer(len(labels)), labels, label_smoothing)
        space, kernel = self._space(len(labels)), self._kernel
        first, second = space.first, space.second
        self._dense_gradients("fc2", space.hidden4, space.logits, space.of_hidden4)
        space.of_hidden4 *= space.hidden4 > 0
        self._dense_gradients("fc1", space.hidden3, space.of_hidden4, space.of_hidden3)
        space.of_hidden3 *= space.hidden3 > 0
        self._dense_gradients("conv3", space.features, space.of_hidden3, space.of_features)
        second.gradients[...] = _by_tile(space.of_features, second.gradients)
        self._convolution_gradients("conv2", kernel.backward2, first.outputs, second, first.gradients)
        # Nobody needs the gradients of images: any array of their type will do.
        self._convolution_gradients("conv1", kernel.backward1, space.images, first, space.images)
        return float(losses.sum(dtype=np.float64)), int(hits.sum())

    def _dense(self, layer: str, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """A fully connected layer."""
        np.matmul(self._matrix(self._weight, layer), inputs, out=outputs)
        outputs += self._weight[f"{layer}.bias"][:, None]

    def _dense_gradients(self, layer: str, inputs: np.ndarray, of_outputs: np.ndarray, of_inputs: np.ndarray) -> None:
        np.matmul(of_outputs, inputs.T, out=self._matrix(self._gradient, layer))
        of_outputs.sum(axis=1, out=self._gradient[f"{layer}.bias"])
        np.matmul(self._matrix(self._weight, layer).T, of_outputs, out=of_inputs)

    def _convolution_gradients(
        self, layer: str, backward: Any, inputs: np.ndarray, block: _Block, of_inputs: np.ndarray
    ) -> None:
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        of_weight, of_bias = block.of_weight, block.of_bias
        backward(
            inputs, self._weight[weight], block.gradients, block.winner, of_inputs, of_weight, of_bias, block.unpooled
        )
        ones = np.ones(of_bias.shape[1], of_bias.dtype)
        for name, by_lane in ((weight, of_weight), (bias, of_bias)):
            np.dot(by_lane.reshape(-1, len(ones)), ones, out=self._gradient[name].reshape(-1))

    def cross_entropy(
        self, logits: np.ndarray, labels: torch.Tensor, label_smoothing: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses ``[B]`` and hits ``[B]``; the logits become the gradients of the mean loss."""
        losses, hits = np.empty(len(labels), logits.dtype), np.empty(len(labels), bool)
        self._kernel.cross_entropy(logits, labels.numpy(), logits.dtype.type(label_smoothing), losses, hits)
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
        self._kernel.descend(
            self.weights, self.gradients, velocity, mask, kind(rate), kind(momentum), kind(decay), nesterov
        )

    def _matrix(self, parts: Mapping[str, np.ndarray], layer: str) -> np.ndarray:
        """A layer's weights as a matrix: the last convolution sees 5×5 pixels, and so is a fully connected layer."""
        weight = parts[f"{layer}.weight"]
        return weight.reshape(len(weight), -1)

    def _space(self, batch: int) -> _Space:
        width = self._kernel.lanes(self.weights.itemsize)
        tiles = -(-batch // width)
        if tiles not in self._spaces:
            self._spaces[tiles] = _Space(self._parameters, tiles, width)
        return self._spaces[tiles]


class _Block:
    """Room for what a convolution with its pooling puts out, and for gradients; T tiles of L lanes."""

    def __init__(self, weight: torch.Tensor, tiles: int, width: int, half: int, unpooled: tuple[int, int]) -> None:
        kind, out = weight.dtype, len(weight)
        self.outputs = _aligned((tiles, out, half, half, width), kind)
        self.gradients = _aligned((tiles, out, half, half, width), kind)
        self.winner = _aligned((tiles, out, half, half, width), torch.int8)
        self.unpooled = _aligned((*unpooled, 2 * half, width), kind)
        self.of_weight = _aligned((*weight.shape, width), kind)
        self.of_bias = _aligned((out, width), kind)


class _Space:
    """Room for the activations of T tiles of L images, N = T·L, and for their gradients."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], tiles: int, width: int) -> None:
        one, two = parameters["conv1.weight"], parameters["conv2.weight"]
        kind, count = one.dtype, tiles * width

        def columns(features: int) -> np.ndarray:
            return _aligned((features, count), kind)

        self.images = _aligned((tiles, one.shape[1], _SIDE, _SIDE, width), kind)
        self.rows = _aligned((2, 28, width), kind)
        self.first = _Block(one, tiles, width, half=14, unpooled=(1, 2))
        self.second = _Block(two, tiles, width, half=5, unpooled=(len(two), 10))
        self.features, self.of_features = columns(25 * len(two)), columns(25 * len(two))
        three, four, classes = (len(parameters[f"{layer}.bias"]) for layer in _LAYERS[2:])
        self.hidden3, self.of_hidden3 = columns(three), columns(three)
        self.hidden4, self.of_hidden4 = columns(four), columns(four)
        self.logits = columns(classes)


def _aligned(shape: tuple[int, ...], kind: torch.dtype) -> np.ndarray:
    """Zeros that start where a cache line does, so that no vector spans two: torch aligns, NumPy does not."""
    return torch.zeros(shape, dtype=kind).numpy()


def _by_tile(matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A view of ``[features, N]`` in the shape ``[T, C, 5, 5, L]``."""
    tiles, channels, rows, columns, width = like.shape
    return matrix.reshape(channels, rows, columns, tiles, width).transpose(3, 0, 1, 2, 4)


class CompiledSteps:
    """Epochs of a trainer, compiled; between two of them weights and momentum are where torch's would be.

    Args:
        trainer: Whose network, data, recipe, optimiser and meter it works on; :func:`obstacle` found none.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._network = CompiledLeNet(trainer.model)
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
        trainer.optimiser.zero_grad(set_to_none=True)
        self._fetch()
        with self._as_torch_computes(), trainer.meter.noting({}, trainer.optimiser):
            for images, labels in trainer.dataset.batches(
                trainer.seed, trainer.stream, epoch, recipe.batch, network.type
            ):
                if step >= total:
                    break
                rate = recipe.rate(epoch, step, trainer.per_epoch)
                for group in trainer.optimiser.param_groups:
                    group["lr"] = rate
                batch_loss, batch_hits = network.step(images, labels, recipe.label_smoothing)
                # It has no gradients and changes nothing: the meter, which listens to optimisers, hears of the step.
                trainer.optimiser.step()
                network.descend(self._velocity, self._mask, rate, recipe.momentum, recipe.weight_decay, recipe.nesterov)
                loss, hits, seen, step = loss + batch_loss, hits + batch_hits, seen + len(labels), step + 1
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
        network, dataset = self._network, self._trainer.dataset
        network.fetch()
        losses, correct = [], []
        with self._as_torch_computes():
            for images, labels in dataset.inputs(part, network.type, _EVALUATION_BATCH):
                batch_losses, hits = network.cross_entropy(network.forward(images), labels)
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


def _compiled(trainer: Trainer, hooks: Hooks) -> Steps | str:
    """Compiled steps of a trainer, or why there are none."""
    found = trainer.recipe.only_torch or obstacle(trainer.model, trainer.dataset, hooks, trainer.precision)
    return found or CompiledSteps(trainer)


BACKENDS["compiled"] = _compiled
