"""Training of LeNet-5, of any pruned widths, on one core several times faster than torch does it: see :mod:`.lanes`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from pruneaudit.training.lanes import LaneNetwork, LaneSteps, aligned, has_outputs, is_acted_on, unfit
from pruneaudit.training.loop import BACKENDS, Hooks, Steps, Trainer
from pruneaudit.workloads.data import Dataset
from pruneaudit.workloads.models.lenet import LeNet5

_LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")
_SIDE = 32


def obstacle(model: nn.Module, dataset: Dataset, hooks: Hooks, precision: str) -> str | None:
    """Why a training of LeNet-5 cannot run compiled, or None where it can.

    Args:
        model: The network.
        dataset: What it trains on.
        hooks: What a method adds to the training; nothing may be added.
        precision: ``fp32`` and ``fp64`` are compiled.
    """
    if (found := unfit(model, hooks, precision)) is not None:
        return found
    if type(model) is not LeNet5:
        return f"only LeNet5 is compiled, not {type(model).__name__}"
    if dataset.shape[1:] != (_SIDE, _SIDE):
        return f"inputs are {' × '.join(map(str, dataset.shape[1:]))}, not {_SIDE} × {_SIDE}"
    expected = [f"{layer}.{name}" for layer in _LAYERS for name in ("weight", "bias")]
    if [name for name, _ in model.named_parameters()] != expected or any(True for _ in model.buffers()):
        return "the network has other parameters than LeNet5"
    if any(type(module) not in (LeNet5, nn.Conv2d, nn.Linear) or is_acted_on(module) for module in model.modules()):
        return "the network's layers do more than LeNet5's"
    if not _fits(model, dataset):
        return "the network's layers do not fit each other, or the data"
    return None


def _fits(model: LeNet5, dataset: Dataset) -> bool:
    """Whether convolutions are LeNet5's, and each layer takes what comes before: compiled code does not check."""
    plain = {"kernel_size": (5, 5), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    shapes = [tuple(model.get_parameter(f"{layer}.weight").shape) for layer in _LAYERS]
    return (
        all(getattr(model.get_submodule(layer), key) == value for layer in _LAYERS[:3] for key, value in plain.items())
        and all(before[0] == after[1] for before, after in pairwise(shapes))
        and shapes[0][1] == dataset.channels
        and has_outputs(shapes[-1][0], dataset)
    )


class CompiledLeNet(LaneNetwork):
    """A LeNet-5 whose parameters lie in one flat array, in the order and shapes of its module.

    Args:
        model: The network; :func:`obstacle` found none.
        beside: A network of the same shape that acts at other times: activations then lie in the same place, and
            images that one of them was shown need not be shown to the other.
    """

    def __init__(self, model: nn.Module, beside: CompiledLeNet | None = None) -> None:
        super().__init__(model)
        # Needs Numba, and loads it only where something is compiled.
        from pruneaudit.training import lenet_kernel

        self._kernel = lenet_kernel
        self._spaces: dict[int, _Space] = {} if beside is None else beside._spaces

    def room(self, batch: int) -> np.ndarray:
        """See :class:`LaneNetwork`."""
        return self._space(batch).images

    def answer(self, batch: int) -> np.ndarray:
        """See :class:`LaneNetwork`."""
        space, weight, kernel = self._space(batch), self.weight, self._kernel
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

    def learn(self, labels: torch.Tensor, label_smoothing: float) -> tuple[float, int]:
        """See :class:`LaneNetwork`."""
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
        np.matmul(self._matrix(self.weight, layer), inputs, out=outputs)
        outputs += self.weight[f"{layer}.bias"][:, None]

    def _dense_gradients(self, layer: str, inputs: np.ndarray, of_outputs: np.ndarray, of_inputs: np.ndarray) -> None:
        np.matmul(of_outputs, inputs.T, out=self._matrix(self.gradient, layer))
        of_outputs.sum(axis=1, out=self.gradient[f"{layer}.bias"])
        np.matmul(self._matrix(self.weight, layer).T, of_outputs, out=of_inputs)

    def _convolution_gradients(
        self, layer: str, backward: Any, inputs: np.ndarray, block: _Block, of_inputs: np.ndarray
    ) -> None:
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        of_weight, of_bias = block.of_weight, block.of_bias
        backward(
            inputs, self.weight[weight], block.gradients, block.winner, of_inputs, of_weight, of_bias, block.unpooled
        )
        ones = np.ones(of_bias.shape[1], of_bias.dtype)
        for name, by_lane in ((weight, of_weight), (bias, of_bias)):
            np.dot(by_lane.reshape(-1, len(ones)), ones, out=self.gradient[name].reshape(-1))

    def _matrix(self, parts: Mapping[str, np.ndarray], layer: str) -> np.ndarray:
        """A layer's weights as a matrix: the last convolution sees 5×5 pixels, and so is a fully connected layer."""
        weight = parts[f"{layer}.weight"]
        return weight.reshape(len(weight), -1)

    def _space(self, batch: int) -> _Space:
        width = self.width
        tiles = -(-batch // width)
        if tiles not in self._spaces:
            self._spaces[tiles] = _Space(self._parameters, tiles, width)
        return self._spaces[tiles]


class _Block:
    """Room for what a convolution with its pooling puts out, and for gradients; T tiles of L lanes."""

    def __init__(self, weight: torch.Tensor, tiles: int, width: int, half: int, unpooled: tuple[int, int]) -> None:
        kind, out = weight.dtype, len(weight)
        self.outputs = aligned((tiles, out, half, half, width), kind)
        self.gradients = aligned((tiles, out, half, half, width), kind)
        self.winner = aligned((tiles, out, half, half, width), torch.int8)
        self.unpooled = aligned((*unpooled, 2 * half, width), kind)
        self.of_weight = aligned((*weight.shape, width), kind)
        self.of_bias = aligned((out, width), kind)


class _Space:
    """Room for the activations of T tiles of L images, N = T·L, and for their gradients."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], tiles: int, width: int) -> None:
        one, two = parameters["conv1.weight"], parameters["conv2.weight"]
        kind, count = one.dtype, tiles * width

        def columns(features: int) -> np.ndarray:
            return aligned((features, count), kind)

        self.images = aligned((tiles, one.shape[1], _SIDE, _SIDE, width), kind)
        self.rows = aligned((2, 28, width), kind)
        self.first = _Block(one, tiles, width, half=14, unpooled=(1, 2))
        self.second = _Block(two, tiles, width, half=5, unpooled=(len(two), 10))
        self.features, self.of_features = columns(25 * len(two)), columns(25 * len(two))
        three, four, classes = (len(parameters[f"{layer}.bias"]) for layer in _LAYERS[2:])
        self.hidden3, self.of_hidden3 = columns(three), columns(three)
        self.hidden4, self.of_hidden4 = columns(four), columns(four)
        self.logits = columns(classes)


def _by_tile(matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A view of ``[features, N]`` in the shape ``[T, C, 5, 5, L]``."""
    tiles, channels, rows, columns, width = like.shape
    return matrix.reshape(channels, rows, columns, tiles, width).transpose(3, 0, 1, 2, 4)


class CompiledSteps(LaneSteps):
    """Epochs of a trainer, compiled.

    Args:
        trainer: Whose network, data, recipe, optimiser and meter it works on; :func:`obstacle` found none.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer, CompiledLeNet(trainer.model))


def _compiled(trainer: Trainer, hooks: Hooks) -> Steps | str:
    """Compiled steps of a trainer, or why there are none."""
    found = trainer.recipe.only_torch or obstacle(trainer.model, trainer.dataset, hooks, trainer.precision)
    return found or CompiledSteps(trainer)


BACKENDS["compiled"] = _compiled
