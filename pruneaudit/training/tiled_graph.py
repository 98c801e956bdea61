"""From a network's own code, traced (``torch.fx``), to layers that act on tiles of images."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pruneaudit.errors import AuditError
from pruneaudit.training.tiled_layers import (
    Convolution,
    Flat,
    Largest,
    Layer,
    Map,
    Mean,
    Normalisation,
    Rectifier,
    Shortcut,
    Sum,
)

#: Columns of a map: each of its parts has code of its own.
_LONGEST = 64


class CannotTileError(AuditError):
    """A network that has no tiled form; the message says why."""


def trace(model: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
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


def form_of(model: nn.Module) -> Hashable:
    """What two networks have in common if :func:`trace` finds the same layers, which takes ten times as long.

    These are modules by name with their types and settings, and the shapes of their tensors.
    """
    usual = vars(nn.Module()).keys()
    modules = [
        (name, type(module), repr({key: value for key, value in vars(module).items() if key not in usual}))
        for name, module in model.named_modules()
    ]
    tensors = [(name, *tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()]
    return (*modules, *tensors)


class _Reader:
    """Turns one node of a graph after the other into layers."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self._model = model
        self._maps: dict[fx.Node, Map] = {}
        self._images = Map(*shape)
        self.layers: list[Layer] = []
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
            shown = layer or f"'{node.format_node()}'"
            raise CannotTileError(f"no tiled form of {shown} is known")
        self._maps[node] = made

    def _of(self, node: fx.Node, place: int = 0) -> Map:
        """What an operation takes."""
        source = node.args[place] if len(node.args) > place else None
        if not isinstance(source, fx.Node) or source not in self._maps:
            raise CannotTileError(f"no tiled form of '{node.format_node()}' is known")
        return self._maps[source]

    def _add(self, layer: Layer) -> Map:
        self.layers.append(layer)
        return layer.outputs

    def _takes(self, node: fx.Node) -> str:
        """The name of a layer that is used here, and nowhere else."""
        name = str(node.target)
        if name in self.used:
            raise CannotTileError(f"layer '{name}' is used more than once")
        self.used.add(name)
        return name

    def _ending(self, node: Any) -> Normalisation | None:
        """The normalisation that a node is, where nothing else sees its outputs and nothing follows it yet."""
        if not isinstance(node, fx.Node) or len(node.users) != 1 or node not in self._maps:
            return None
        for layer in self.layers:
            if layer.outputs is self._maps[node]:
                return layer if isinstance(layer, Normalisation) and not layer.rectifies else None
        return None

    def _rectifier_before(self, node: fx.Node) -> Rectifier | None:
        """The ReLU that comes right before a node, where nothing else sees what it makes."""
        before, last = node.args[0], self.layers[-1] if self.layers else None
        if not isinstance(before, fx.Node) or len(before.users) != 1 or not isinstance(last, Rectifier):
            return None
        makers = [maker for maker, made in self._maps.items() if made is last.outputs]
        return last if makers == [before] else None

    def convolution(self, node: fx.Node, layer: nn.Conv2d) -> Map | None:
        """A convolution with square kernels."""
        inputs = self._of(node)
        shape, padding = tuple(layer.weight.shape), layer.padding
        if layer.groups != 1 or layer.padding_mode != "zeros" or tuple(layer.dilation) != (1, 1):
            return None
        if isinstance(padding, str) or padding[0] != padding[1] or layer.stride[0] != layer.stride[1]:
            return None
        kernel, stride, around = layer.kernel_size[0], layer.stride[0], padding[0]
        if shape[1:] != (inputs.channels, kernel, kernel):
            return None
        high, wide = ((length + 2 * around - kernel) // stride + 1 for length in (inputs.high, inputs.wide))
        if min(high, wide) < 1 or around >= kernel or max(wide, inputs.wide) > _LONGEST:
            return None
        return self._add(Convolution(Map(shape[0], high, wide), [inputs], self._takes(node), layer))

    def linear(self, node: fx.Node, layer: nn.Linear) -> Map | None:
        """A linear layer over vectors."""
        inputs = self._of(node)
        if inputs.cells != 1 or layer.weight.shape[1] != inputs.channels:
            return None
        return self._add(Convolution(Map(layer.weight.shape[0]), [inputs], self._takes(node), layer))

    def normalisation(self, node: fx.Node, layer: nn.BatchNorm2d) -> Map | None:
        """A normalisation with weights and running statistics."""
        inputs = self._of(node)
        known = layer.affine and layer.track_running_stats and layer.momentum is not None
        if not known or len(layer.weight) != inputs.channels or inputs is self._images:
            return None
        return self._add(Normalisation(inputs.like(), [inputs], self._takes(node), layer))

    def rectifier(self, node: fx.Node, layer: nn.ReLU | None) -> Map | None:
        """A ReLU: of a normalisation where it can be."""
        if (_options(node, layer, {"inplace": False})["inplace"] or node.target == "relu_") and not _is_seen_once(
            node.args[0]
        ):
            return None
        inputs, ending = self._of(node), self._ending(node.args[0])
        if ending is not None:
            ending.rectifies = True
            return inputs
        return self._add(Rectifier(inputs.like(), [inputs]))

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
        return self._add(Sum(one.like(), [one, other]))

    def largest(self, node: fx.Node, layer: nn.MaxPool2d | None) -> Map | None:
        """Max-pooling of windows side by side that fill the map."""
        given = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
        inputs, options = self._of(node), _options(node, layer, {**given, "return_indices": False})
        size, stride = (_single(options.pop(name)) for name in ("kernel_size", "stride"))
        options = {name: _single(value) for name, value in options.items()}
        plain = {"padding": 0, "dilation": 1, "ceil_mode": 0, "return_indices": 0}
        if options != plain or not size or stride not in (size, None) or inputs.high % size or inputs.wide % size:
            return None
        pooled = Map(inputs.channels, inputs.high // size, inputs.wide // size)
        rectifier = self._rectifier_before(node)
        if rectifier is None:
            return self._add(Largest(pooled, [inputs], size))
        # The ReLU of the largest pixel is the largest one's, and where it is zero no gradient goes on: the same bits.
        self.layers.remove(rectifier)
        return self._add(Rectifier(pooled.like(), [self._add(Largest(pooled, [rectifier.inputs], size))]))

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
            return self._add(Shortcut(Map(inputs.channels, high, wide), [inputs], stride, 0))
        return self._add(Mean(Map(inputs.channels), [inputs])) if size == inputs.high == inputs.wide else None

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
        return self._add(Shortcut(outputs, [inputs], 1, before))

    def whole_mean(self, node: fx.Node, layer: nn.AdaptiveAvgPool2d | None) -> Map | None:
        """Adaptive pooling to one pixel."""
        inputs, options = self._of(node), _options(node, layer, {"output_size": None})
        return self._add(Mean(Map(inputs.channels), [inputs])) if _single(options["output_size"]) == 1 else None

    def mean(self, node: fx.Node, _: None) -> Map | None:
        """Mean of all pixels, channels first or last."""
        inputs, options = self._of(node), _options(node, None, {"dim": None, "keepdim": False, "dtype": None})
        dims = options["dim"]
        if not isinstance(dims, tuple | list) or options["dtype"] is not None:
            return None
        is_moved = isinstance(node.args[0], fx.Node) and node.args[0].target == "permute"
        if set(dims) not in (({1, 2},) if is_moved else ({2, 3}, {-1, -2})) or (is_moved and options["keepdim"]):
            return None
        return self._add(Mean(Map(inputs.channels), [inputs]))

    def flatten(self, node: fx.Node, layer: nn.Flatten | None) -> Map | None:
        """A vector for each image, in torch's order: channels, rows, columns."""
        inputs, options = self._of(node), _options(node, layer, {"start_dim": 0, "end_dim": -1})
        if options != {"start_dim": 1, "end_dim": -1}:
            return None
        return inputs if inputs.cells == 1 else self._add(Flat(Map(inputs.size), [inputs]))

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
