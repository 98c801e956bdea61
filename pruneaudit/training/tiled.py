"""Training of plain and residual convolutional networks, of any pruned widths, at the speed of one core's arithmetic.

A network's own code is traced (``torch.fx``) and becomes a list of layers that act on tiles of images, see
:mod:`.tiled_kernel`: what is small for torch's kernels, and mostly waits for their dispatch, is not for them. Its
mathematics is that of :class:`pruneaudit.training.loop.TorchSteps` in float32 or float64; sums are taken in another
order, so that weights agree with torch's to rounding, not to the bit.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from pruneaudit.errors import AuditError
from pruneaudit.training.lanes import EVALUATION_BATCH, LaneNetwork, LaneSteps, aligned, has_outputs, is_acted_on, unfit
from pruneaudit.training.loop import BACKENDS, Hooks, Steps, Trainer
from pruneaudit.workloads.data import Dataset
from pruneaudit.workloads.recipes import Recipe

#: Cells between two tiles, so that the same cell of each does not fall into the same set of a cache.
_SPARE = 2
#: Columns of a map: each of its parts has code of its own.
_LONGEST = 64


class CannotTileError(AuditError):
    """A network that has no tiled form; the message says why."""


def obstacle(model: nn.Module, dataset: Dataset, hooks: Hooks, precision: str, recipe: Recipe) -> str | None:
    """Why a training cannot run in tiles, or None where it can.

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
    if any(isinstance(layer, _Normalisation) and last * layer.inputs.cells < 2 for layer in layers):
        return "a batch of one image gives a normalisation one value"
    return None


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


class _Layer:
    """An operation; ``adds`` says for each of ``sources`` whether its gradients are added to what is there.

    Args:
        outputs: What it makes.
        sources: What it makes it of.
    """

    def __init__(self, outputs: Map, *sources: Map) -> None:
        self.outputs = outputs
        self.sources = list(sources)
        self.adds: list[bool] = []

    @property
    def inputs(self) -> Map:
        """The first source."""
        return self.sources[0]

    def forward(self, tiles: _Tiles) -> None:
        """Make the outputs."""
        raise NotImplementedError

    def backward(self, tiles: _Tiles) -> None:
        """Hand gradients of the outputs on, to weights and to sources."""
        raise NotImplementedError


@dataclass
class _Tiles:
    """A batch that passes.

    Attributes:
        count: Tiles.
        batch: Images.
        learns: Whether it is trained on.
        kernel: :mod:`.tiled_kernel`.
        weight: Parameters by name.
        gradient: Their gradients.
        running: Statistics by name.
    """

    count: int
    batch: int
    learns: bool
    kernel: Any
    weight: Mapping[str, np.ndarray]
    gradient: Mapping[str, np.ndarray]
    running: Mapping[str, np.ndarray]

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part of a map's room that the batch takes."""
        return array[: self.count]


class _Convolution(_Layer):
    """Also a linear layer: a convolution of 1×1 over maps of one pixel."""

    def __init__(self, name: str, layer: nn.Conv2d | nn.Linear, outputs: Map, inputs: Map) -> None:
        super().__init__(outputs, inputs)
        self.name, self.has_bias = name, layer.bias is not None
        self.is_linear = isinstance(layer, nn.Linear)
        self.geometry = (1, 1, 0, 1)
        self.tall, self.high = 1, 1
        if isinstance(layer, nn.Conv2d):
            self.geometry = (layer.kernel_size[0], layer.stride[0], int(layer.padding[0]), inputs.wide)
            self.tall, self.high = inputs.high, outputs.high
        self.nothing: dict[Any, np.ndarray] = {}

    def _passes(self, tiles: _Tiles) -> Any:
        return tiles.kernel.convolution(*self.geometry)

    def _weights(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        weight = parts[f"{self.name}.weight"]
        return weight[:, :, None, None] if self.is_linear else weight

    def _zeros(self, weight: np.ndarray) -> np.ndarray:
        count = max(weight.shape[:2])
        return self.nothing.setdefault(weight.dtype, np.zeros(count, weight.dtype))

    def forward(self, tiles: _Tiles) -> None:
        weight = self._weights(tiles.weight)
        bias = tiles.weight[f"{self.name}.bias"] if self.has_bias else self._zeros(weight)
        inputs, outputs = tiles.of(self.inputs.values), tiles.of(self.outputs.values)
        self._passes(tiles)[0](inputs, weight, bias, outputs, self.tall, self.high)

    def backward(self, tiles: _Tiles) -> None:
        weight, gradients = self._weights(tiles.weight), tiles.of(self.outputs.gradients)
        _, to_inputs, to_weights = self._passes(tiles)
        to_weights(tiles.of(self.inputs.values), gradients, self._weights(tiles.gradient), self.tall, self.high)
        if self.has_bias:
            tiles.kernel.bias_gradients(gradients, tiles.gradient[f"{self.name}.bias"], self.outputs.cells)
        if self.inputs.gradients is not None:
            target = tiles.of(self.inputs.gradients)
            to_inputs(gradients, weight, self._zeros(weight), target, self.tall, self.high, self.adds[0])


class _Normalisation(_Layer):
    """Batch normalisation, with the sum and the ReLU behind it where nothing else sees what is between them."""

    def __init__(self, name: str, layer: nn.BatchNorm2d | nn.BatchNorm1d, outputs: Map, inputs: Map) -> None:
        super().__init__(outputs, inputs)
        self.name, self.momentum, self.eps = name, layer.momentum, layer.eps
        self.rectifies = False
        self.kept: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def joins(self) -> bool:
        """Whether a second map is added."""
        return len(self.sources) > 1

    def forward(self, tiles: _Tiles) -> None:
        weight, bias = (tiles.weight[f"{self.name}.{part}"] for part in ("weight", "bias"))
        kind = weight.dtype.type
        kept = self.kept.setdefault(weight.dtype, (np.zeros_like(weight), np.zeros_like(weight)))
        tiles.kernel.normalise(
            tiles.of(self.inputs.values), tiles.of(self.sources[-1].values), tiles.of(self.outputs.values),
            self.inputs.cells, tiles.batch, weight, bias,
            tiles.running[f"{self.name}.running_mean"], tiles.running[f"{self.name}.running_var"], *kept,
            kind(self.momentum), kind(self.eps), tiles.learns, self.joins, self.rectifies,
        )  # fmt: skip

    def backward(self, tiles: _Tiles) -> None:
        weight = tiles.weight[f"{self.name}.weight"]
        gradients = tiles.of(self.outputs.gradients)
        of_maps, of_beside = (source.gradients for source in (self.sources[0], self.sources[-1]))
        tiles.kernel.normalise_backward(
            tiles.of(self.inputs.values), tiles.of(self.outputs.values), gradients, tiles.of(of_maps),
            tiles.of(of_beside), self.inputs.cells, tiles.batch, weight,
            tiles.gradient[f"{self.name}.weight"], tiles.gradient[f"{self.name}.bias"], *self.kept[weight.dtype],
            self.joins, self.adds[-1], self.rectifies, self.adds[0],
        )  # fmt: skip


class _Rectifier(_Layer):
    def forward(self, tiles: _Tiles) -> None:
        tiles.kernel.rectify(tiles.of(self.inputs.values), tiles.of(self.outputs.values), self.outputs.size)

    def backward(self, tiles: _Tiles) -> None:
        if self.inputs.gradients is not None:
            tiles.kernel.rectify_backward(
                tiles.of(self.outputs.values), tiles.of(self.outputs.gradients), tiles.of(self.inputs.gradients),
                self.outputs.size, self.adds[0],
            )  # fmt: skip


class _Sum(_Layer):
    def forward(self, tiles: _Tiles) -> None:
        one, other = (tiles.of(source.values) for source in self.sources)
        tiles.kernel.join(one, other, tiles.of(self.outputs.values), self.outputs.size)

    def backward(self, tiles: _Tiles) -> None:
        for source, adds in zip(self.sources, self.adds, strict=True):
            if source.gradients is not None:
                tiles.kernel.hand_on(
                    tiles.of(self.outputs.gradients), tiles.of(source.gradients), self.outputs.size, adds
                )


class _Flat(_Layer):
    """The same cells as a vector."""

    def forward(self, tiles: _Tiles) -> None:
        tiles.kernel.hand_on(
            tiles.of(self.inputs.values), tiles.of(self.outputs.values), self.outputs.size, False
        )  # fmt: skip

    def backward(self, tiles: _Tiles) -> None:
        if self.inputs.gradients is not None:
            tiles.kernel.hand_on(
                tiles.of(self.outputs.gradients), tiles.of(self.inputs.gradients), self.outputs.size, self.adds[0]
            )


class _Shortcut(_Layer):
    """Every so-manieth pixel, and blank channels on both sides."""

    def __init__(self, outputs: Map, inputs: Map, stride: int, before: int) -> None:
        super().__init__(outputs, inputs)
        self.stride, self.before = stride, before

    def forward(self, tiles: _Tiles) -> None:
        inputs = self.inputs
        tiles.kernel.shortcut(
            tiles.of(inputs.values), tiles.of(self.outputs.values), inputs.channels, self.outputs.channels, self.before,
            inputs.high, inputs.wide, self.stride,
        )  # fmt: skip

    def backward(self, tiles: _Tiles) -> None:
        inputs = self.inputs
        if inputs.gradients is not None:
            tiles.kernel.shortcut_backward(
                tiles.of(self.outputs.gradients), tiles.of(inputs.gradients), inputs.channels, self.before,
                inputs.high, inputs.wide, self.stride, self.adds[0],
            )  # fmt: skip


class _Mean(_Layer):
    def forward(self, tiles: _Tiles) -> None:
        inputs = self.inputs
        tiles.kernel.mean(tiles.of(inputs.values), tiles.of(self.outputs.values), inputs.channels, inputs.cells)

    def backward(self, tiles: _Tiles) -> None:
        inputs = self.inputs
        if inputs.gradients is not None:
            tiles.kernel.mean_backward(
                tiles.of(self.outputs.gradients), tiles.of(inputs.gradients), inputs.channels, inputs.cells,
                self.adds[0],
            )  # fmt: skip


class _Largest(_Layer):
    """Max-pooling of windows that do not overlap."""

    def __init__(self, outputs: Map, inputs: Map, size: int) -> None:
        super().__init__(outputs, inputs)
        self.size = size
        self.winner: Any = None

    def forward(self, tiles: _Tiles) -> None:
        inputs = self.inputs
        if self.winner is None or self.winner.shape != self.outputs.values.shape:
            self.winner = np.zeros(self.outputs.values.shape, np.int16)
        tiles.kernel.largest(
            tiles.of(inputs.values), tiles.of(self.outputs.values), tiles.of(self.winner), inputs.channels,
            inputs.high, inputs.wide, self.size,
        )  # fmt: skip

    def backward(self, tiles: _Tiles) -> None:
        inputs = self.inputs
        if inputs.gradients is not None:
            tiles.kernel.largest_backward(
                tiles.of(self.outputs.gradients), tiles.of(self.winner), tiles.of(inputs.gradients), inputs.channels,
                inputs.high, inputs.wide, self.size, self.adds[0],
            )  # fmt: skip


# From a network's code to layers


def trace(model: nn.Module, shape: tuple[int, ...]) -> list[_Layer]:
    """A network's layers, from first to last; the first one's source is the images.

    Args:
        model: The network; what listens to its layers is not asked.
        shape: Of one input, ``[C, H, W]``.

    Raises:
        CannotTileError: Something of it has no tiled form.
    """
    plain = copy.deepcopy(model)
    for module in plain.modules():
        # The harness's meter: it would count the tracer.
        module._forward_pre_hooks.clear()
    try:
        graphs = [fx.Tracer().trace(plain.train(mode)) for mode in (False, True)]
    except Exception as error:
        # Whatever the code of a network does with a traced value.
        raise CannotTileError(f"the network's code cannot be traced: {error}") from None
    if str(graphs[0]) != str(graphs[1]):
        raise CannotTileError("the network computes something else in training than in evaluation")
    reader = _Reader(plain, shape)
    for node in graphs[1].nodes:
        reader.read(node)
    seen = {id(source) for layer in reader.layers for source in layer.sources}
    if any(id(layer.outputs) not in seen for layer in reader.layers[:-1]):
        raise CannotTileError("the network computes what it does not use")
    unused = [name for name, _ in plain.named_parameters() if name.rpartition(".")[0] not in reader.used]
    if unused:
        raise CannotTileError(f"'{unused[0]}' belongs to no layer that the network uses")
    return reader.layers


class _Reader:
    """Turns one node of a graph after the other into layers."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self._model = model
        self._maps: dict[fx.Node, Map] = {}
        self._images = Map(*shape)
        self.layers: list[_Layer] = []
        self.used: set[str] = set()

    def read(self, node: fx.Node) -> None:
        """Add what a node does.

        Raises:
            CannotTileError: It has no tiled form.
        """
        if node.op == "placeholder":
            if self._maps:
                raise CannotTileError("the network has more than one input")
            self._maps[node] = self._images
            return
        if node.op == "output":
            found = self._maps.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
            if found is None or found.cells != 1 or not self.layers or self.layers[-1].outputs is not found:
                raise CannotTileError("the network gives something else than the outputs of its last layer")
            return
        made = None
        layer = self._model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if layer is not None:
            make = _LAYERS.get(type(layer))
            made = make(self, node, layer) if make else None
        elif node.op == "call_function":
            make = _FUNCTIONS.get(node.target)
            made = make(self, node, None) if make else None
        elif node.op == "call_method":
            make = _METHODS.get(str(node.target))
            made = make(self, node, None) if make else None
        if made is None:
            raise CannotTileError(f"no tiled form of {layer or node.format_node()} is known")
        self._maps[node] = made

    def _of(self, node: fx.Node, place: int = 0) -> Map:
        """What an operation takes."""
        source = node.args[place] if len(node.args) > place else None
        if not isinstance(source, fx.Node) or source not in self._maps:
            raise CannotTileError(f"no tiled form of '{node.format_node()}' is known")
        return self._maps[source]

    def _add(self, layer: _Layer) -> Map:
        self.layers.append(layer)
        return layer.outputs

    def _takes(self, node: fx.Node) -> str:
        """The name of a layer that is used here, and nowhere else."""
        name = str(node.target)
        if name in self.used:
            raise CannotTileError(f"layer '{name}' is used more than once")
        self.used.add(name)
        return name

    def _ending(self, node: Any) -> _Normalisation | None:
        """The normalisation that a node is, where nothing else sees its outputs and nothing follows it yet."""
        if not isinstance(node, fx.Node) or len(node.users) != 1 or node not in self._maps:
            return None
        for layer in self.layers:
            if layer.outputs is self._maps[node]:
                return layer if isinstance(layer, _Normalisation) and not layer.rectifies else None
        return None

    def convolution(self, node: fx.Node, layer: nn.Conv2d) -> Map | None:
        """A convolution with square kernels."""
        inputs = self._of(node)
        pairs = (layer.kernel_size, layer.stride, layer.padding)
        if layer.groups != 1 or layer.padding_mode != "zeros" or tuple(layer.dilation) != (1, 1):
            return None
        if any(isinstance(pair, str) or pair[0] != pair[1] for pair in pairs) or layer.in_channels != inputs.channels:
            return None
        (kernel, _), (stride, _), (padding, _) = pairs
        high, wide = ((length + 2 * int(padding) - kernel) // stride + 1 for length in (inputs.high, inputs.wide))
        if min(high, wide) < 1 or int(padding) >= kernel or max(wide, inputs.wide) > _LONGEST:
            return None
        outputs = Map(layer.out_channels, high, wide)
        return self._add(_Convolution(self._takes(node), layer, outputs, inputs))

    def linear(self, node: fx.Node, layer: nn.Linear) -> Map | None:
        """A linear layer over vectors."""
        inputs = self._of(node)
        if inputs.cells != 1 or layer.in_features != inputs.channels:
            return None
        return self._add(_Convolution(self._takes(node), layer, Map(layer.out_features), inputs))

    def normalisation(self, node: fx.Node, layer: nn.BatchNorm2d) -> Map | None:
        """A normalisation with weights and running statistics."""
        inputs = self._of(node)
        known = layer.affine and layer.track_running_stats and layer.momentum is not None
        if not known or layer.num_features != inputs.channels or inputs is self._images:
            return None
        outputs = Map(inputs.channels, inputs.high, inputs.wide)
        return self._add(_Normalisation(self._takes(node), layer, outputs, inputs))

    def rectifier(self, node: fx.Node, layer: nn.ReLU | None) -> Map | None:
        """A ReLU: of a normalisation where it can be."""
        if (_options(node, layer, {"inplace": False})["inplace"] or node.target == "relu_") and not _is_seen_once(node.args[0]):
            return None
        inputs, ending = self._of(node), self._ending(node.args[0])
        if ending is not None:
            ending.rectifies = True
            return inputs
        return self._add(_Rectifier(Map(inputs.channels, inputs.high, inputs.wide), inputs))

    def sum(self, node: fx.Node, _: None) -> Map | None:
        """A sum of two maps: with a normalisation that comes right before it, where there is one."""
        if len(node.args) != 2 or node.kwargs:
            return None
        one, other = self._of(node), self._of(node, 1)
        if (one.channels, one.high, one.wide) != (other.channels, other.high, other.wide):
            return None
        if node.target is operator.iadd and not _is_seen_once(node.args[0]):
            return None
        for mine, beside in ((0, other), (1, one)):
            ending = self._ending(node.args[mine])
            if ending is not None and not ending.joins and beside not in (ending.outputs, self._images):
                ending.sources.append(beside)
                # What is added may be computed after it.
                self.layers.remove(ending)
                return self._add(ending)
        return self._add(_Sum(Map(one.channels, one.high, one.wide), one, other))

    def largest(self, node: fx.Node, layer: nn.MaxPool2d | None) -> Map | None:
        """Max-pooling of windows side by side that fill the map."""
        given = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
        inputs, options = self._of(node), _options(node, layer, {**given, "return_indices": False})
        size, stride = (_single(options.pop(name)) for name in ("kernel_size", "stride"))
        options = {name: _single(value) for name, value in options.items()}
        plain = {"padding": 0, "dilation": 1, "ceil_mode": 0, "return_indices": 0}
        if options != plain or not size or stride not in (size, None) or inputs.high % size or inputs.wide % size:
            return None
        return self._add(_Largest(Map(inputs.channels, inputs.high // size, inputs.wide // size), inputs, size))

    def average(self, node: fx.Node, layer: nn.AvgPool2d | None) -> Map | None:
        """Pooling of single pixels (option A's shortcut), or of whole maps."""
        given = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False}
        inputs = self._of(node)
        options = _options(node, layer, {**given, "count_include_pad": True, "divisor_override": None})
        size, stride = (_single(options.pop(name)) for name in ("kernel_size", "stride"))
        if options != {"padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}:
            return None
        if size == 1:
            stride = stride or 1
            high, wide = (-(-length // stride) for length in (inputs.high, inputs.wide))
            return self._add(_Shortcut(Map(inputs.channels, high, wide), inputs, stride, 0))
        return self._add(_Mean(Map(inputs.channels), inputs)) if size == inputs.high == inputs.wide else None

    def pad(self, node: fx.Node, _: None) -> Map | None:
        """Blank channels before and behind."""
        inputs, options = self._of(node), _options(node, None, {"pad": None, "mode": "constant", "value": None})
        padding = options["pad"]
        if options["mode"] != "constant" or options["value"] not in (None, 0):
            return None
        if not isinstance(padding, tuple | list) or len(padding) != 6 or any(padding[:4]):
            return None
        before, behind = padding[4:]
        if not isinstance(before, int) or not isinstance(behind, int) or min(before, behind) < 0:
            return None
        outputs = Map(inputs.channels + before + behind, inputs.high, inputs.wide)
        return self._add(_Shortcut(outputs, inputs, 1, before))

    def whole_mean(self, node: fx.Node, layer: nn.AdaptiveAvgPool2d | None) -> Map | None:
        """Adaptive pooling to one pixel."""
        inputs, options = self._of(node), _options(node, layer, {"output_size": None})
        return self._add(_Mean(Map(inputs.channels), inputs)) if _single(options["output_size"]) == 1 else None

    def mean(self, node: fx.Node, _: None) -> Map | None:
        """Mean of all pixels, channels first or last."""
        inputs, options = self._of(node), _options(node, None, {"dim": None, "keepdim": False, "dtype": None})
        dims = options["dim"]
        if not isinstance(dims, tuple | list) or options["dtype"] is not None:
            return None
        is_moved = isinstance(node.args[0], fx.Node) and node.args[0].target == "permute"
        if set(dims) not in (({1, 2},) if is_moved else ({2, 3}, {-1, -2})) or (is_moved and options["keepdim"]):
            return None
        return self._add(_Mean(Map(inputs.channels), inputs))

    def flatten(self, node: fx.Node, layer: nn.Flatten | None) -> Map | None:
        """A vector for each image, in torch's order: channels, rows, columns."""
        inputs, options = self._of(node), _options(node, layer, {"start_dim": 0, "end_dim": -1})
        if options != {"start_dim": 1, "end_dim": -1}:
            return None
        return inputs if inputs.cells == 1 else self._add(_Flat(Map(inputs.size), inputs))

    def move(self, node: fx.Node, _: None) -> Map | None:
        """Channels last, for nobody but a mean."""
        order = node.args[1] if len(node.args) == 2 else node.args[1:]
        is_known = order == (0, 2, 3, 1) and all(user.target in ("mean", torch.mean) for user in node.users)
        return self._of(node) if is_known else None

    def same(self, node: fx.Node, layer: nn.Module | None) -> Map | None:
        """What does nothing."""
        return self._of(node)


def _single(size: Any) -> Any:
    """The length of a square, which may be stated once or twice."""
    return size[0] if isinstance(size, tuple | list) and len(size) == 2 and size[0] == size[1] else size


def _options(node: fx.Node, layer: nn.Module | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """What an operation was asked for: of a layer, or of a call with what it leaves out.

    Raises:
        CannotTileError: It was asked for something else, too.
    """
    if layer is not None:
        return {name: getattr(layer, name, value) for name, value in known.items()}
    found = {**known, **dict(zip(known, node.args[1:], strict=False)), **node.kwargs}
    if set(found) != set(known):
        raise CannotTileError(f"no tiled form of '{node.format_node()}' is known")
    return found


def _is_seen_once(node: Any) -> bool:
    """Whether what changes a node's values in place changes them for nobody else."""
    if not isinstance(node, fx.Node) or len(node.users) > 1:
        return False
    return node.target not in ("flatten", torch.flatten) or _is_seen_once(node.args[0])


_LAYERS: dict[type[nn.Module], Callable[..., Map | None]] = {
    nn.Conv2d: _Reader.convolution,
    nn.Linear: _Reader.linear,
    nn.BatchNorm1d: _Reader.normalisation,
    nn.BatchNorm2d: _Reader.normalisation,
    nn.ReLU: _Reader.rectifier,
    nn.MaxPool2d: _Reader.largest,
    nn.AvgPool2d: _Reader.average,
    nn.AdaptiveAvgPool2d: _Reader.whole_mean,
    nn.Flatten: _Reader.flatten,
    nn.Identity: _Reader.same,
}
_FUNCTIONS: dict[Any, Callable[..., Map | None]] = {
    F.relu: _Reader.rectifier,
    torch.relu: _Reader.rectifier,
    operator.add: _Reader.sum,
    operator.iadd: _Reader.sum,
    torch.add: _Reader.sum,
    F.max_pool2d: _Reader.largest,
    F.avg_pool2d: _Reader.average,
    F.adaptive_avg_pool2d: _Reader.whole_mean,
    F.pad: _Reader.pad,
    torch.flatten: _Reader.flatten,
    torch.mean: _Reader.mean,
}
_METHODS: dict[str, Callable[..., Map | None]] = {
    "relu": _Reader.rectifier,
    "relu_": _Reader.rectifier,
    "flatten": _Reader.flatten,
    "mean": _Reader.mean,
    "permute": _Reader.move,
    "contiguous": _Reader.same,
}


# Steps


class TiledNetwork(LaneNetwork):
    """A network whose parameters lie in one flat array, in the order and shapes of its module.

    Args:
        model: The network; :func:`obstacle` found none.
        shape: Of one input, ``[C, H, W]``.
        batch: Images of a batch.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], batch: int) -> None:
        super().__init__(model)
        # Needs Numba, and loads it only where something is compiled.
        from pruneaudit.training import tiled_kernel

        self._tiled = tiled_kernel
        self._model = model
        self._layers = trace(model, shape)
        self._images, self._logits = self._layers[0].inputs, self._layers[-1].outputs
        self._count = -(-max(batch, EVALUATION_BATCH) // self.width)
        self._running: dict[str, np.ndarray] = {}
        self._room()

    def fetch(self) -> None:
        """Take the module's weights; its statistics stay where they are, and are changed there."""
        super().fetch()
        self._running = {
            name: buffer.numpy() for name, buffer in self._model.named_buffers() if buffer.is_floating_point()
        }

    def forward(self, images: torch.Tensor) -> np.ndarray:
        """Logits ``[classes, N]`` of images ``[B, C, H, W]``, N ≥ B, as the network gives them in evaluation."""
        return self._pass(images, learns=False)[1]

    def step(self, images: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> tuple[float, int]:
        """Forward and backward pass of a batch; changes no weights, but statistics.

        Returns:
            Sum of the images' losses, and how many of them were classified correctly.
        """
        tiles, logits = self._pass(images, learns=True)
        losses, hits = self.cross_entropy(logits, labels, label_smoothing)
        of_logits = tiles.of(self._logits.gradients)
        of_logits[:, : len(logits)] = logits.reshape(len(logits), tiles.count, self.width).transpose(1, 0, 2)
        for layer in reversed(self._layers):
            layer.backward(tiles)
        return float(losses.sum(dtype=np.float64)), int(hits.sum())

    def _pass(self, images: torch.Tensor, learns: bool) -> tuple[_Tiles, np.ndarray]:
        batch = len(images)
        tiles = _Tiles(-(-batch // self.width), batch, learns, self._tiled, self.weight, self.gradient, self._running)
        shown, source = tiles.of(self._images.values), self._images
        shown = shown.reshape(tiles.count, source.channels, source.high, source.wide, self.width)
        self.kernel.into_lanes(images.permute(0, 2, 3, 1).contiguous().numpy(), shown)
        for layer in self._layers:
            layer.forward(tiles)
        classes = self._logits.channels
        logits = tiles.of(self._logits.values)[:, :classes].transpose(1, 0, 2).reshape(classes, -1)
        return tiles, np.ascontiguousarray(logits)

    def _room(self) -> None:
        """Give every map its place, and say whose gradients are added to whose."""

        def room(size: int, spare: int = _SPARE) -> np.ndarray:
            return aligned((self._count, size + spare, self.width), self.type)

        readers: dict[int, int] = {}
        for layer in self._layers:
            for source in layer.sources:
                readers[id(source)] = readers.get(id(source), 0) + 1
        self._images.values = room(self._images.size, 0)
        for layer in self._layers:
            layer.outputs.values, layer.outputs.gradients = (room(layer.outputs.size) for _ in range(2))
        for layer in self._layers:
            if isinstance(layer, _Normalisation) and readers[id(layer.inputs)] == 1:
                # Nobody needs the ones once the others are known.
                layer.inputs.gradients = layer.outputs.gradients
        known: set[int] = set()
        for layer in reversed(self._layers):
            layer.adds = []
            for source in layer.sources:
                layer.adds.append(id(source) in known)
                known.add(id(source))


def _tiled(trainer: Trainer, hooks: Hooks) -> Steps | str:
    """Tiled steps of a trainer, or why there are none."""
    recipe = trainer.recipe
    found = recipe.only_torch or obstacle(trainer.model, trainer.dataset, hooks, trainer.precision, recipe)
    if found:
        return found
    return TiledSteps(trainer, TiledNetwork(trainer.model, trainer.dataset.shape, recipe.batch))


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


BACKENDS["tiled"] = _tiled
