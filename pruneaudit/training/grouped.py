"""K networks of one shape as one network: every activation has K times the channels, model after model.

Convolutions become grouped ones, linear layers batched matrix products, and a normalisation over all channels already
is one of each model by itself. Whatever acts on channels and images separately (ReLU, pooling, sums) stays as it is.
The models' own code is traced (``torch.fx``), so that none of it is written twice.

The weights of all models lie in one vector, and so do gradients and momenta: a step of SGD is then a handful of
kernels, whatever the number of layers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pruneaudit.errors import AuditError
from pruneaudit.ledger.records import Jacobian
from pruneaudit.measure.trainability import SAMPLES, first_images, jacobian, singular_values, summary
from pruneaudit.training.fused import Normalisation, fuse
from pruneaudit.workloads.data import Dataset


class CannotStackError(AuditError):
    """Networks that cannot be stacked; the message says what stands in the way."""


def signature(model: nn.Module) -> tuple[str, ...]:
    """What networks that are stacked must have in common: operations, layers, and shapes, types and device of tensors.

    Raises:
        CannotStackError: The network has something that is not known to keep models apart.
    """
    graph = _trace(model)
    layers = [repr(model.get_submodule(str(node.target))) for node in graph.nodes if node.op == "call_module"]
    tensors = [
        f"{name} {[*tensor.shape]} {tensor.dtype} {tensor.device}" for name, tensor in model.state_dict().items()
    ]
    return (str(graph), *layers, *tensors)


def stack(models: Sequence[nn.Module], channels_last: bool | None = None, fused: bool = False) -> GroupedNetwork:
    """One network that holds copies of K networks, on their device and in their type.

    Args:
        models: Networks with one :func:`signature`.
        channels_last: Memory layout of activations and of convolutions' weights; None: as the first model has it.
        fused: Whether normalisations are compiled together with the ReLU after them, see :mod:`.fused`.

    Raises:
        CannotStackError: They differ, or have something that is not known to keep models apart.
    """
    return GroupedNetwork(models, channels_last, fused)


def unstack(grouped: GroupedNetwork) -> list[dict[str, torch.Tensor]]:
    """State of each model, copied, as its own ``state_dict`` has it."""
    return [
        {name: tensor[number].clone() for name, tensor in grouped.stacked_state().items()}
        for number in range(grouped.count)
    ]


def singular_values_of(models: Sequence[nn.Module], images: torch.Tensor) -> torch.Tensor:
    """What :func:`pruneaudit.measure.trainability.singular_values` finds for each of K networks of one shape.

    Args:
        models: Networks that can be stacked.
        images: Normalised images ``[N, C, H, W]``, the same for all.

    Returns:
        ``[K, N, min(classes, C·H·W)]`` float64, falling.
    """
    # Each model differentiates copies of its own: a gradient with respect to shared images would be their sum.
    values = singular_values(_SideBySide(stack(models)), images.repeat(len(models), *[1] * (images.dim() - 1)))
    return values.unflatten(0, (len(models), -1))


def jacobians(
    models: Sequence[nn.Module], dataset: Dataset, samples: int = SAMPLES, together: bool | None = None
) -> list[Jacobian | Exception]:
    """What :func:`pruneaudit.measure.trainability.jacobian` finds for each of some networks, or why it finds nothing.

    Args:
        models: The networks, on the device of the dataset and of one type.
        dataset: The workload's data.
        samples: Number of images.
        together: Whether networks are stacked; None: on CUDA only. On a CPU it saves a fifth for some networks and
            loses as much for others; one at a time, a result has the same bits whatever is measured beside it.
            Networks that cannot be stacked, or do not fit the memory, are measured in smaller groups or alone.
    """
    if together is None:
        together = next(models[0].parameters()).is_cuda
    if together and len(models) > 1:
        try:
            dtype = next(models[0].parameters()).dtype
            chunks = [singular_values_of(models, images) for images in first_images(dataset, dtype, samples)]
            return [_outcome(partial(summary, values)) for values in torch.cat(chunks, dim=1)]
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            half = len(models) // 2
            parts = (models[:half], models[half:])
            return [found for part in parts for found in jacobians(part, dataset, samples, together)]
        except CannotStackError:
            pass
    return [_outcome(partial(jacobian, model, dataset, samples)) for model in models]


def _outcome(measure: Callable[[], Jacobian]) -> Jacobian | Exception:
    try:
        return measure()
    except Exception as error:  # Whatever it is, it is about one network: the others have theirs.
        return error


class _SideBySide(nn.Module):
    """A stack as a network over ``[K·N, C, H, W]`` images, of which each model sees its N."""

    def __init__(self, grouped: GroupedNetwork) -> None:
        super().__init__()
        self.grouped = grouped

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.grouped(images.unflatten(0, (self.grouped.count, -1)))
        return logits.flatten(0, 1)


class Blocks:
    """Tensors of K models in one vector: for each tensor a block with the K models' values one after the other.

    Args:
        tensors: For each name the tensors of the models, alike in shape.
        channels_last: Whether 4-D tensors (convolutions' weights) lie channels last in memory.
    """

    def __init__(self, tensors: Mapping[str, Sequence[torch.Tensor]], channels_last: bool = False) -> None:
        first = {name: found[0] for name, found in tensors.items()}
        self.shapes = {name: tensor.shape for name, tensor in first.items()}
        self.count = max((len(found) for found in tensors.values()), default=0)
        self._channels_last = channels_last
        example = next(iter(first.values()), torch.empty(0))
        self.vector = example.new_empty(self.count * sum(shape.numel() for shape in self.shapes.values()))
        for name, view in self.views(self.vector).items():
            for number, tensor in enumerate(tensors[name]):
                view[number].copy_(tensor.detach())

    def views(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each tensor within a vector of this layout, ``[K, *shape]``."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + self.count * shape.numel()
            block = vector[start:stop]
            if self._channels_last and len(shape) == 4:
                outputs, inputs, height, width = shape
                views[name] = block.view(self.count, outputs, height, width, inputs).permute(0, 1, 4, 2, 3)
            else:
                views[name] = block.view(self.count, *shape)
            start = stop
        return views

    def owners(self) -> torch.Tensor:
        """For each value of the vector the number of its model, int32."""
        owners = torch.empty(len(self.vector), dtype=torch.int32, device=self.vector.device)
        numbers = torch.arange(self.count, dtype=torch.int32, device=owners.device)
        for view in self.views(owners).values():
            view.copy_(numbers.view(-1, *[1] * (view.dim() - 1)))
        return owners


class GroupedNetwork(nn.Module):
    """K networks as one, see :func:`stack`. It cannot be moved: its parameters are parts of one vector.

    Attributes:
        count: Number of models, K.
        weights: All parameters.
        parameters_of: Parameters by name, each ``[K, *shape]``, a view of ``weights``.
        statistics: Running means and variances.
        tracked: Batches that each normalisation has seen, ``[normalisations, K]``.
        fused: How many normalisations are compiled together with the ReLU after them.
    """

    def __init__(self, models: Sequence[nn.Module], channels_last: bool | None = None, fused: bool = False) -> None:
        super().__init__()
        if len({signature(model) for model in models}) != 1:
            raise CannotStackError(f"{len(models)} networks of different shapes cannot be stacked")
        graph, first = _trace(models[0]), models[0]
        self.count = len(models)
        self._names = list(first.state_dict())
        self.channels_last = channels_last if channels_last is not None else _is_channels_last(first)
        parameters = [dict(model.named_parameters()) for model in models]
        buffers = [dict(model.named_buffers()) for model in models]
        running = [name for name in buffers[0] if not name.endswith("num_batches_tracked")]
        counters = [name for name in buffers[0] if name.endswith("num_batches_tracked")]
        self.weights = Blocks({name: [own[name] for own in parameters] for name in parameters[0]}, self.channels_last)
        self.statistics = Blocks({name: [own[name] for own in buffers] for name in running})
        vector = self.weights.vector
        seen = [torch.stack([own[name] for own in buffers]) for name in counters]
        self.tracked = torch.stack(seen) if seen else vector.new_empty(0, dtype=torch.int64)
        self._counters = counters
        self.parameters_of = {name: nn.Parameter(view) for name, view in self.weights.views(vector).items()}
        tensors = {**self.parameters_of, **self.statistics.views(self.statistics.vector)}
        # A first layer that sees the same images for all models is one wide layer instead of K narrow ones.
        (images,) = (node for node in graph.nodes if node.op == "placeholder")
        entries = [first.get_submodule(node.target) if node.op == "call_module" else None for node in images.users]
        self._takes_shared = all(
            isinstance(entry, nn.Linear) or (isinstance(entry, nn.Conv2d) and entry.groups == 1) for entry in entries
        )
        self._network = self._rewritten(first, graph, tensors, fused)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of all models.

        Args:
            images: ``[N, C, H, W]``, the same for all models, or ``[K, N, C, H, W]``.

        Returns:
            ``[K, N, classes]``.
        """
        if images.dim() == 5:
            images = images.transpose(0, 1).flatten(1, 2)
        elif not self._takes_shared:
            images = images.repeat(1, self.count, 1, 1)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        if self.training and len(self.tracked):
            self.tracked.add_(1)
        logits: torch.Tensor = self._network(images.contiguous(memory_format=layout))
        return logits.unflatten(1, (self.count, -1)).transpose(0, 1)

    def stacked_state(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers in the models' order, each ``[K, *shape]``: views, not copies."""
        found = {
            **self.weights.views(self.weights.vector),
            **self.statistics.views(self.statistics.vector),
            **dict(zip(self._counters, self.tracked, strict=True)),
        }
        return {name: found[name] for name in self._names}

    def _rewritten(
        self, model: nn.Module, graph: fx.Graph, tensors: Mapping[str, torch.Tensor], fused: bool
    ) -> fx.GraphModule:
        """The graph with every layer replaced by its grouped form."""
        modules: dict[str, nn.Module] = {}
        for node in list(graph.nodes):
            if node.op == "call_module":
                layer = model.get_submodule(node.target)
                make = _GROUPED.get(type(layer))
                own = {
                    name: tensors[f"{node.target}.{name}"]
                    for name in _names_of(layer)
                    if f"{node.target}.{name}" in tensors
                }
                modules[node.target] = make(layer, self.count, own) if make else layer
            elif node.op == "call_function" and node.target in _APART:
                # Channels of all models would be mixed: the models are told apart for this operation.
                name = f"apart_{node.name}"
                modules[name] = _Apart(self.count, node.target)
                node.op, node.target = "call_module", name
        self.fused = fuse(graph, modules) if fused else 0
        return fx.GraphModule(modules, graph)


class _Convolution(nn.Module):
    def __init__(self, layer: nn.Conv2d, count: int, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = tensors["weight"], tensors.get("bias")
        self.inputs, self.groups = layer.in_channels, layer.groups
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.flatten()
        groups = self.groups * (maps.shape[1] // self.inputs)
        weight = self.weight.flatten(0, 1)
        return F.conv2d(maps, weight, bias, self.stride, self.padding, self.dilation, groups)


class _Linear(nn.Module):
    def __init__(self, layer: nn.Linear, count: int, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = tensors["weight"], tensors.get("bias")
        self.inputs, self.count = layer.in_features, count

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if features.shape[1] == self.inputs:
            bias = None if self.bias is None else self.bias.flatten()
            return F.linear(features, self.weight.flatten(0, 1), bias)
        rows = features.unflatten(1, (self.count, -1)).transpose(0, 1)
        weight = self.weight.transpose(1, 2)
        out = torch.bmm(rows, weight) if self.bias is None else torch.baddbmm(self.bias[:, None], rows, weight)
        return out.transpose(0, 1).flatten(1)


class _Apart(nn.Module):
    """An operation on ``[N, K, C, ...]`` that mixes channels of one model."""

    def __init__(self, count: int, operation: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.count, self.operation = count, operation

    def forward(self, maps: torch.Tensor | Sequence[torch.Tensor], *arguments: object, **named: object) -> torch.Tensor:
        one = maps if isinstance(maps, torch.Tensor) else maps[0]
        if isinstance(maps, torch.Tensor):
            result = self.operation(maps.unflatten(1, (self.count, -1)), *arguments, **named)
        else:
            result = torch.cat([each.unflatten(1, (self.count, -1)) for each in maps], dim=2)
        result = result.flatten(1, 2)
        if one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last):
            return result.contiguous(memory_format=torch.channels_last)
        return result


_GROUPED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Conv2d: _Convolution,
    nn.Linear: _Linear,
    nn.BatchNorm1d: Normalisation,
    nn.BatchNorm2d: Normalisation,
}


def _names_of(layer: nn.Module) -> list[str]:
    return [name for name, _ in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))]


def _is_channels_last(model: nn.Module) -> bool:
    weights = [tensor for tensor in model.parameters() if tensor.dim() == 4]
    return bool(weights) and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


# What is known of the operations of a network


def _trace(model: nn.Module) -> fx.Graph:
    """The operations of a network, each known to keep stacked models apart or to have a grouped form.

    Raises:
        CannotStackError: One is not.
    """
    for name, module in model.named_modules():
        if any(getattr(module, kind) for kind in _HOOKS):
            raise CannotStackError(f"'{name or 'the network'}' has hooks, which would see all models at once")
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise CannotStackError(f"parameter '{frozen[0]}' is frozen")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(names) != len(list(model.parameters())):
        raise CannotStackError("layers of the network share parameters")
    if len({tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}) > 1:
        raise CannotStackError("the network's tensors have several types")
    was_training = model.training
    try:
        graphs = [fx.Tracer().trace(model.train(mode)) for mode in (False, True)]
    except Exception as error:
        # Whatever the code of a network does with a traced value.
        raise CannotStackError(f"the network's code cannot be traced: {error}") from None
    finally:
        model.train(was_training)
    graph = graphs[1]
    if str(graphs[0]) != str(graph):
        raise CannotStackError("the network computes something else in training than in evaluation")
    used: dict[str, int] = {}
    for node in graph.nodes:
        _check(model, node)
        if node.op == "call_module":
            used[node.target] = used.get(node.target, 0) + 1
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        layer = name.rpartition(".")[0]
        if layer not in used:
            raise CannotStackError(f"'{name}' belongs to no layer that the network uses")
        if used[layer] > 1 and isinstance(model.get_submodule(layer), nn.BatchNorm1d | nn.BatchNorm2d):
            raise CannotStackError(f"normalisation '{layer}' is used {used[layer]} times")
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise CannotStackError("the network has more than one input")
    return graph


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _check(model: nn.Module, node: fx.Node) -> None:
    """Raise unless an operation is known.

    Raises:
        CannotStackError: It is not.
    """
    if node.op in ("placeholder", "output"):
        # Several outputs, in whatever container, would have to be taken apart again.
        known = node.op == "placeholder" or isinstance(node.args[0], fx.Node)
    elif node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        known = _LAYERS.get(type(layer), _never)(layer)
        if not known:
            raise CannotStackError(f"no grouped form of layer '{node.target}', {layer}, is known")
    elif node.op == "call_method":
        known = _METHODS.get(str(node.target), _never)(node)
    else:
        known = node.op == "call_function" and _FUNCTIONS.get(node.target, _never)(node)
    if not known:
        raise CannotStackError(f"no grouped form of '{node.format_node()}' is known")


def _always(_: object) -> bool:
    return True


def _never(_: object) -> bool:
    return False


def _argument(node: fx.Node, place: int, name: str, default: object) -> object:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _flattens_one(node: fx.Node) -> bool:
    start = _argument(node, 1, "start_dim", 0)
    return isinstance(start, int) and start >= 1


def _reduces_pixels(node: fx.Node) -> bool:
    dims = _argument(node, 1, "dim", None)
    dims = [dims] if isinstance(dims, int) else dims
    if isinstance(node.args[0], fx.Node) and node.args[0].target == "permute":
        # Channels are last: they must be what is left.
        return isinstance(dims, list | tuple) and set(dims) == {1, 2} and not _argument(node, 2, "keepdim", False)
    # A negative number may be the channels of a tensor whose rank is not known here.
    return isinstance(dims, list | tuple) and all(isinstance(dim, int) and dim >= 2 for dim in dims)


def _moves_channels_last(node: fx.Node) -> bool:
    """Only to reduce pixels: what else follows would have to know where the channels are."""
    order = node.args[1] if len(node.args) == 2 else node.args[1:]
    return bool(order == (0, 2, 3, 1)) and all(user.target in ("mean", torch.mean) for user in node.users)


def _slices_pixels(node: fx.Node) -> bool:
    index = node.args[1]
    return isinstance(index, tuple) and len(index) > 2 and index[:2] == (slice(None), slice(None))


def _pads_images(node: fx.Node) -> bool:
    padding = _argument(node, 1, "pad", None)
    return (
        isinstance(padding, list | tuple) and len(padding) <= 6 and _argument(node, 2, "mode", "constant") == "constant"
    )


def _joins_channels(node: fx.Node) -> bool:
    return _argument(node, 1, "dim", 0) == 1


#: Operations that see the models apart, ``[N, K, C, ...]``: trailing dimensions are the same, channels those of one.
_APART: dict[Any, Callable[[fx.Node], bool]] = {F.pad: _pads_images, torch.cat: _joins_channels}
_POINTWISE = (F.relu, torch.relu, operator.add, operator.iadd, torch.add, operator.mul, torch.mul)
_POOLING = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d)
_FUNCTIONS: dict[Any, Callable[[fx.Node], bool]] = {
    **dict.fromkeys((*_POINTWISE, *_POOLING), _always),
    **_APART,
    operator.getitem: _slices_pixels,
    torch.flatten: _flattens_one,
    torch.mean: _reduces_pixels,
}
_METHODS: dict[str, Callable[[fx.Node], bool]] = {
    "relu": _always,
    "relu_": _always,
    "add": _always,
    "flatten": _flattens_one,
    "mean": _reduces_pixels,
    "permute": _moves_channels_last,
}
_LAYERS: dict[type[nn.Module], Callable[[Any], bool]] = {
    nn.Conv2d: lambda layer: layer.padding_mode == "zeros",
    nn.Linear: _always,
    nn.BatchNorm1d: lambda layer: layer.track_running_stats and layer.momentum is not None,
    nn.BatchNorm2d: lambda layer: layer.track_running_stats and layer.momentum is not None,
    nn.Flatten: lambda layer: layer.start_dim == 1,
    **dict.fromkeys((nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity), _always),
}


# The optimiser


class StackedSGD:
    """SGD of K stacked models as :class:`torch.optim.SGD` does it, each with its own settings.

    Everything that changes while it steps lies on the device, in tensors that stay: a CUDA graph can replay a step.

    Args:
        network: The models.
        momentum: Of each model, ``[K]``.
        weight_decay: Of each model, ``[K]``.
        nesterov: Of all models.
        masks: For each model which weights may differ from zero, by name of a parameter, bool; None: no masks.

    Attributes:
        rates: Learning rates of the next step, ``[K]`` on the device.
        momenta: Momentum buffers by parameter, each ``[K, *shape]``.
    """

    def __init__(
        self,
        network: GroupedNetwork,
        momentum: Sequence[float],
        weight_decay: Sequence[float],
        nesterov: bool = False,
        masks: Sequence[Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        self._weights = network.weights
        vector = self._weights.vector
        self._parameters = list(network.parameters_of.values())
        self._owners = self._weights.owners()
        self.rates = vector.new_zeros(network.count)
        self._gradient, self.momentum = torch.zeros_like(vector), torch.zeros_like(vector)
        self._gradients = list(self._weights.views(self._gradient).values())
        self.momenta = self._weights.views(self.momentum)
        self._spread_rates = torch.empty_like(vector)
        self._momentum, self._decay = self._spread(momentum), self._spread(weight_decay)
        self._nesterov = nesterov
        self._mask: torch.Tensor | None = None
        if masks and any(masks):
            self._mask = torch.ones_like(vector)
            views = self._weights.views(self._mask)
            for number, own in enumerate(masks):
                for name, mask in own.items():
                    views[name][number].copy_(mask)

    def _spread(self, values: Sequence[float]) -> float | torch.Tensor:
        """A setting for each weight; one number where all models have the same."""
        if len(set(values)) == 1:
            return values[0]
        return self._weights.vector.new_tensor(values).index_select(0, self._owners)

    def gradients(self, losses: torch.Tensor) -> None:
        """Take the gradients of the models' losses, ``[K]``: the loss of one model depends on its weights alone."""
        torch._foreach_copy_(self._gradients, torch.autograd.grad(losses.sum(), self._parameters))

    @torch.no_grad()
    def step(self) -> None:
        """Move all weights by their gradients."""
        weights, gradient = self._weights.vector, self._gradient
        if self._mask is not None:
            # A weight that is zero and never moved stays zero: neither momentum nor weight decay move it.
            gradient.mul_(self._mask)
        _add(gradient, weights, self._decay)
        self.momentum.mul_(self._momentum).add_(gradient)
        if self._nesterov:
            _add(gradient, self.momentum, self._momentum)
        torch.index_select(self.rates, 0, self._owners, out=self._spread_rates)
        weights.addcmul_(gradient if self._nesterov else self.momentum, self._spread_rates, value=-1)


def _add(target: torch.Tensor, values: torch.Tensor, factor: float | torch.Tensor) -> None:
    if isinstance(factor, torch.Tensor):
        target.addcmul_(values, factor)
    elif factor:
        target.add_(values, alpha=factor)
