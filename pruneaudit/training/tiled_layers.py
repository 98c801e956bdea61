"""Layers of convolutional networks that act on tiles of images: which kernels, on which parts of memory.

A layer does not compute; it says what is to be called, once for each size of a batch, so that a step is nothing but
these calls (:mod:`.tiled_kernel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import nn

Call = Callable[[], object]


@dataclass(eq=False)
class Map:
    """Activations of one layer.

    Attributes:
        channels: Number of channels.
        high: Rows; 1 of a vector.
        wide: Columns; 1 of a vector.
        values: ``[T, cells, L]``, once there is room.
        gradients: The same of the loss's gradients; None where nobody needs them.
    """

    channels: int
    high: int = 1
    wide: int = 1
    values: Any = None
    gradients: Any = None

    @property
    def cells(self) -> int:
        """Pixels of a channel."""
        return self.high * self.wide

    @property
    def size(self) -> int:
        """Numbers for each image."""
        return self.channels * self.cells

    def like(self) -> Map:
        """Another one of this shape."""
        return Map(self.channels, self.high, self.wide)


@dataclass
class Batch:
    """Tiles of a batch that pass the layers together, and what they meet.

    Attributes:
        first: Number of the first tile.
        tiles: How many there are; with all tiles of the batch, or as many as a block has.
        images: Theirs; all tiles but the batch's last are full.
        part: Which part of the batch they are, ``FIRST`` and ``LAST`` of :attr:`kernel` added.
        block: Tiles that there is room for in what is not kept until the batch is over.
        learns: Whether they are trained on.
        kernel: :mod:`.tiled_kernel`.
        weight: Parameters by name.
        gradient: Their gradients.
        running: Statistics by name.
    """

    first: int
    tiles: int
    images: int
    part: int
    block: int
    learns: bool
    kernel: Any
    weight: Mapping[str, np.ndarray]
    gradient: Mapping[str, np.ndarray]
    running: Mapping[str, np.ndarray]

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part of a map's room that these tiles take."""
        # Where there is room for the whole batch each has its own place.
        first = self.first if len(array) > self.block else 0
        return array[first : first + self.tiles]


@dataclass(eq=False)
class Layer:
    """An operation.

    Attributes:
        outputs: What it makes.
        sources: What it makes it of.
        adds: For each source whether its gradients are added to what others, which came before, have put there.
    """

    outputs: Map
    sources: list[Map]
    adds: list[bool] = field(default_factory=list, init=False)

    @property
    def inputs(self) -> Map:
        """The first source."""
        return self.sources[0]

    def make_room(self) -> None:
        """Have what one pass keeps for another, once all maps have their places."""

    def forward(self, batch: Batch) -> Iterator[Call]:
        """What makes the outputs."""
        raise NotImplementedError

    def backward(self, batch: Batch) -> Iterator[Call]:
        """What hands gradients of the outputs on, to weights and to sources."""
        raise NotImplementedError

    def close(self, batch: Batch) -> Iterator[Call]:
        """What is left to do with the whole batch, once all of its parts went backward."""
        yield from ()


@dataclass(eq=False)
class Convolution(Layer):
    """Also a linear layer: a convolution of 1×1 over maps of one pixel.

    Attributes:
        name: The layer's.
        layer: Torch's.
        waits: Whether gradients of weights are summed when the whole batch went backward; its maps keep what they need.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    waits: bool = field(default=False, init=False)

    @property
    def _geometry(self) -> tuple[int, int, int, int]:
        if isinstance(self.layer, nn.Linear):
            return 1, 1, 0, 1
        return self.layer.kernel_size[0], self.layer.stride[0], int(self.layer.padding[0]), self.inputs.wide

    def _weights(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        weight = parts[f"{self.name}.weight"]
        return weight[:, :, None, None] if weight.ndim == 2 else weight

    @property
    def sums_by_tile(self) -> bool:
        """Whether gradients of weights are summed up tile by tile, or weight by weight: what is larger is read once."""
        return self.inputs.size + self.outputs.size > self.layer.weight.numel()

    def make_room(self) -> None:
        """See :class:`Layer`."""
        _, _, lanes = self.inputs.values.shape
        kind = self.inputs.values.dtype
        self._sums = np.zeros(self.layer.weight.numel() * lanes if self.sums_by_tile else 1, kind)
        self._bias_sums = np.zeros(self.outputs.channels * lanes, kind)

    def forward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        weight = self._weights(batch.weight)
        bias = np.zeros(len(weight), weight.dtype) if self.layer.bias is None else batch.weight[f"{self.name}.bias"]
        inputs, outputs = batch.of(self.inputs.values), batch.of(self.outputs.values)
        yield self._call(batch, batch.kernel.FORWARD, inputs, outputs, weight, bias)

    def backward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        if not self.waits:
            yield from self._to_weights(batch)
        if self.inputs.gradients is not None:
            weight, target = self._weights(batch.weight), batch.of(self.inputs.gradients)
            given, nothing = batch.of(self.outputs.gradients), np.zeros(weight.shape[1], weight.dtype)
            yield self._call(batch, batch.kernel.TO_INPUTS, given, target, weight, nothing, adds=self.adds[0])

    def close(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        if self.waits:
            yield from self._to_weights(batch)

    def _to_weights(self, batch: Batch) -> Iterator[Call]:
        inputs, gradients = batch.of(self.inputs.values), batch.of(self.outputs.gradients)
        of_weight = self._weights(batch.gradient)
        yield self._call(batch, batch.kernel.TO_WEIGHTS, inputs, gradients, of_weight, self._sums)
        if self.layer.bias is not None:
            of_bias = batch.gradient[f"{self.name}.bias"]
            yield batch.kernel.bias_gradients(gradients, of_bias, self._bias_sums, self.outputs.cells, batch.part)

    def _call(self, batch: Batch, which: int, *arrays: Any, adds: bool = False) -> Call:
        rows = self.inputs.high, self.outputs.high
        return batch.kernel.convolution(self._geometry, which, *arrays, *rows, adds, batch.part)


@dataclass(eq=False)
class Normalisation(Layer):
    """Batch normalisation, with the sum and the ReLU behind it where nothing else sees what is between them.

    Attributes:
        name: The layer's.
        layer: Torch's.
        rectifies: Whether its ReLU is taken.
    """

    name: str
    layer: nn.BatchNorm2d | nn.BatchNorm1d
    rectifies: bool = False

    @property
    def joins(self) -> bool:
        """Whether a second map is added."""
        return len(self.sources) > 1

    def _kept(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Means and inverse deviations that the forward pass leaves to the backward pass."""
        weight = batch.weight[f"{self.name}.weight"]
        return np.zeros_like(weight), np.zeros_like(weight)

    def forward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        weight, bias = (batch.weight[f"{self.name}.{part}"] for part in ("weight", "bias"))
        running = [batch.running[f"{self.name}.{part}"] for part in ("running_mean", "running_var")]
        kind = weight.dtype.type
        maps = [batch.of(found.values) for found in (self.sources[0], self.sources[-1], self.outputs)]
        self.kept = self._kept(batch)
        yield batch.kernel.normalise(
            *maps, self.inputs.cells, batch.images, weight, bias, *running,
            *self.kept, kind(self.layer.momentum), kind(self.layer.eps), batch.learns, self.joins, self.rectifies,
        )  # fmt: skip

    def backward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        of_weight, of_bias = (batch.gradient[f"{self.name}.{part}"] for part in ("weight", "bias"))
        maps = [batch.of(found) for found in (self.inputs.values, self.outputs.values, self.outputs.gradients)]
        maps += [batch.of(found.gradients) for found in (self.sources[0], self.sources[-1])]
        yield batch.kernel.normalise_backward(
            *maps, self.inputs.cells, batch.images, batch.weight[f"{self.name}.weight"], of_weight, of_bias, *self.kept,
            self.joins, self.adds[-1], self.rectifies, self.adds[0],
        )  # fmt: skip


def _acting(batch: Batch, kind: str, size: int, one: Any, other: Any, target: Any, adds: bool = False) -> Call:
    arrays = [batch.of(array) for array in (one, other, target)]
    return batch.kernel.act(kind, *arrays, size, adds)


class Rectifier(Layer):
    """ReLU."""

    def forward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        values = self.inputs.values
        yield _acting(batch, "rectify", self.outputs.size, values, values, self.outputs.values)

    def backward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        made, target = self.outputs, self.inputs.gradients
        if target is not None:
            yield _acting(batch, "rectified", made.size, made.gradients, made.values, target, self.adds[0])


class Sum(Layer):
    """Sum of two maps."""

    def forward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        one, other = (source.values for source in self.sources)
        yield _acting(batch, "sum", self.outputs.size, one, other, self.outputs.values)

    def backward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        given = self.outputs.gradients
        for source, adds in zip(self.sources, self.adds, strict=True):
            if source.gradients is not None:
                yield _acting(batch, "copy", self.outputs.size, given, given, source.gradients, adds)


class Flat(Layer):
    """The same cells as a vector."""

    def forward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        values = self.inputs.values
        yield _acting(batch, "copy", self.outputs.size, values, values, self.outputs.values)

    def backward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        given, target = self.outputs.gradients, self.inputs.gradients
        if target is not None:
            yield _acting(batch, "copy", self.outputs.size, given, given, target, self.adds[0])


@dataclass(eq=False)
class Shortcut(Layer):
    """Every ``stride``-th pixel, and blank channels, ``before`` of them before the others.

    It is rare, and what NumPy does in microseconds; so is :class:`Mean`.
    """

    stride: int
    before: int

    def _taken(self, batch: Batch, inputs: Any, outputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """What is taken of the one map, and where it is in the other."""
        source = _by_pixel(self.inputs, batch.of(inputs))[:, :, :: self.stride, :: self.stride]
        stop = self.before + self.inputs.channels
        return source, _by_pixel(self.outputs, batch.of(outputs))[:, self.before : stop]

    def forward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        # Blank channels are, from the beginning: nobody else writes there.
        source, target = self._taken(batch, self.inputs.values, self.outputs.values)
        yield partial(np.copyto, target, source)

    def backward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        if self.inputs.gradients is not None:
            target, source = self._taken(batch, self.inputs.gradients, self.outputs.gradients)
            if not self.adds[0]:
                yield partial(batch.of(self.inputs.gradients).fill, 0)
            yield partial(np.add, target, source, out=target)


class Mean(Layer):
    """Mean of all pixels of a channel."""

    def forward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        maps = _by_pixel(self.inputs, batch.of(self.inputs.values))
        yield partial(np.mean, maps, axis=(2, 3), out=batch.of(self.outputs.values)[:, : self.outputs.size])

    def backward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        if self.inputs.gradients is not None:
            target = _by_pixel(self.inputs, batch.of(self.inputs.gradients))
            source = batch.of(self.outputs.gradients)[:, : self.outputs.size, None, None]
            share = np.zeros_like(source)
            yield partial(np.divide, source, source.dtype.type(self.inputs.cells), out=share)
            yield partial(np.add, target, share, out=target) if self.adds[0] else partial(np.copyto, target, share)


def _by_pixel(of: Map, array: np.ndarray) -> np.ndarray:
    """A map's room as ``[T, C, H, W, L]``."""
    tiles, _, lanes = array.shape
    strides = (array.strides[0], *(of.cells * array.strides[1], of.wide * array.strides[1]), *array.strides[1:])
    return np.lib.stride_tricks.as_strided(array, (tiles, of.channels, of.high, of.wide, lanes), strides)


@dataclass(eq=False)
class Largest(Layer):
    """Max-pooling of windows of ``length`` × ``length`` that do not overlap."""

    length: int

    def make_room(self) -> None:
        """See :class:`Layer`."""
        self._winner = np.zeros(self.outputs.values.shape, np.int16)

    def forward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        inputs, values = self.inputs, batch.of(self.outputs.values)
        sizes = inputs.channels, inputs.high, inputs.wide, self.length
        yield batch.kernel.largest(batch.of(inputs.values), values, batch.of(self._winner), *sizes)

    def backward(self, batch: Batch) -> Iterator[Call]:
        """See :class:`Layer`."""
        inputs = self.inputs
        if inputs.gradients is not None:
            given, target = batch.of(self.outputs.gradients), batch.of(inputs.gradients)
            sizes = inputs.channels, inputs.high, inputs.wide, self.length
            yield batch.kernel.largest_backward(given, batch.of(self._winner), target, *sizes, self.adds[0])
