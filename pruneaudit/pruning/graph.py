"""Torch-pruning's dependency graph of a network: what loses channels together."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pruneaudit.errors import AuditError, ConfigError, MethodError, one_line
from pruneaudit.measure.tracing import functions_in_sight


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """Import as if a package were not installed, unless it has been imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


# Torch-pruning 1.6.1 imports timm, where it is installed, to count operations, which nobody here lets it do. With timm
# come torchvision and torch's compiler: three seconds of CPU in every process.
with _absent("timm"):
    import torch_pruning

#: Layers that read channels and write others.
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
#: Layers that read a sequence step by step.
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
#: Seconds after which tracing is given up: with some wirings torch-pruning 1.6.1 never ends.
PATIENCE = 120.0
#: Seconds after which a thread that did not hear that it is given up is told again.
_AGAIN = 0.5


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution only passes channels on, each by itself."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels > 1


def dependency_graph(model: nn.Module, example: torch.Tensor) -> Any:
    """Torch-pruning's dependency graph of a network.

    Raises:
        ConfigError: It does not end.
    """
    was_training = model.training
    parameter = next(model.parameters())
    inputs = example.to(parameter) if example.is_floating_point() else example.to(parameter.device)
    frozen = [each for each in model.parameters() if not each.requires_grad and each.is_floating_point()]
    for each in frozen:
        # Its tracing follows autograd's graph, in which frozen layers do not appear.
        each.requires_grad_(True)
    # Hooks of ours come first.
    hooks = [each.register_forward_hook(_as_one) for each in model.modules() if isinstance(each, _RECURRENT)]
    try:
        with torch.enable_grad(), functions_in_sight(all_of_them=False), _within(PATIENCE):
            # Called by us: torch-pruning first tries a batch image by image, and hears no exception.
            graph = torch_pruning.DependencyGraph().build_dependency(
                model.eval(),
                inputs,
                lambda network, images: network(images),
                customized_pruners={kind: _Whole() for kind in _RECURRENT},
                verbose=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
        for each in frozen:
            each.requires_grad_(False)
        model.train(was_training)
    return graph


class _Whole(torch_pruning.BasePruningFunc):
    """What torch-pruning does with a recurrence: nothing, it loses no channels."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.hidden_size)

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.input_size)


class _Opaque(torch.autograd.Function):
    """One step of autograd's graph, whatever was computed in it."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, *computed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(each.clone() for each in computed)


def _as_one(_: nn.Module, given: Any, computed: Any) -> Any:
    """Have a recurrence be one step: torch-pruning would follow each of its own, and lose its way."""
    first, (outputs, state) = given[0], computed
    if not isinstance(first, torch.Tensor):
        return computed  # Packed sequences, which torch-pruning does not take.
    states = state if isinstance(state, tuple) else (state,)
    outputs, *states = _Opaque.apply(first, outputs.detach(), *(each.detach() for each in states))
    return outputs, tuple(states) if isinstance(state, tuple) else states[0]


class NotFollowedError(AuditError):
    """Which channels go together with some is not to be found; the message says why, of a layer."""


class _GivenUpError(BaseException):
    """Raised in the thread that takes too long."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Give up what takes longer, in whatever thread it runs.

    Raises:
        ConfigError: It took longer.
    """
    thread, lock, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), threading.Event()
    raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def give_up() -> None:
        patience = seconds
        while not over.wait(patience):
            with lock:
                if not over.is_set():
                    raise_there(thread, ctypes.py_object(_GivenUpError))
            # What arrives in a destructor or a callback is lost: once more, until it is heard.
            patience = _AGAIN

    def end() -> None:
        with lock:
            over.set()

    threading.Thread(target=give_up, daemon=True).start()
    try:
        yield
        end()
    except _GivenUpError:
        end()
        raise ConfigError(
            f"torch-pruning did not find the network's units within {seconds:g} seconds; name fewer layers in prunable"
        ) from None
    finally:
        end()


def _prune_function(module: nn.Module) -> Any:
    if isinstance(module, nn.Linear):
        return torch_pruning.prune_linear_out_channels
    return torch_pruning.prune_conv_out_channels


def group_of(graph: Any, module: nn.Module, removed: Sequence[int] | None = None) -> Any:
    """Everything that loses channels when a layer loses some filters (default: all), as torch-pruning's group.

    Raises:
        ConfigError: Finding it does not end.
        NotFollowedError: Torch-pruning loses the channels in between.
    """
    indices = list(range(width_of(module))) if removed is None else list(removed)
    with _within(PATIENCE):
        try:
            return graph.get_pruning_group(module, _prune_function(module), idxs=indices)
        except Exception as error:
            # Where a recurrence's operators read a flattened map, say.
            raise NotFollowedError(
                f"torch-pruning cannot follow its channels to what reads them ({one_line(error)})"
            ) from error


def coupled_layers(name: str, layers: Sequence[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]) -> Any:
    """A group of torch-pruning made by hand, for its importance criteria.

    Args:
        name: Of the layer that it is of, for errors.
        layers: Linear layers that lose channels, the first one itself: each with ``outputs`` or ``inputs``, its
            channels, and the channel of the first that each goes with. None: the criteria cannot be asked.
    """
    if not layers:
        return _NoGroup(name)
    group, nodes = torch_pruning.Group(), [torch_pruning.dependency.Node(module, None) for module, *_ in layers]
    for node, (_, side, channels, roots) in zip(nodes, layers, strict=True):
        handler = (
            torch_pruning.prune_linear_out_channels if side == "outputs" else torch_pruning.prune_linear_in_channels
        )
        group.add_dep(torch_pruning.dependency.Dependency(handler, handler, nodes[0], node), channels.tolist())
        group[-1].root_idxs = roots.tolist()
    return group


class _NoGroup:
    """In place of a group that torch-pruning's criteria have no form for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __iter__(self) -> Iterator[Any]:
        raise MethodError(
            f"layer '{self._name}' writes queries, keys and values at once: torch-pruning has no score for their heads"
        )

    def __getitem__(self, _: int) -> Any:
        return iter(self)


def width_of(module: nn.Module) -> int:
    """Output channels of a layer."""
    width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    assert isinstance(width, int)
    return width


def loses_inputs(dependency: Any) -> bool:
    """Whether an item of a group is a layer that loses input channels."""
    return dependency.handler in (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)


def norm_in(group: Any, width: int) -> nn.modules.batchnorm._BatchNorm | None:
    """The first batch normalisation of a group that has a channel for each filter, or None."""
    for item in group:
        target = item.dep.target.module
        if isinstance(target, nn.modules.batchnorm._BatchNorm) and target.num_features == width:
            return target
    return None
