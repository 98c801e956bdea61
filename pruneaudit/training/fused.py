"""Normalisation, the sum with a shortcut, and ReLU as one operation that torch compiles into a few kernels.

On a GPU networks of many small layers wait for memory, not for arithmetic: each of these operations by itself reads and
writes all maps again, forward and backward. Only they are compiled, once for all shapes, layers and numbers of models:
a whole network takes about half a minute to compile (ResNet-20, on a CPU), anew whenever a run leaves or joins.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pruneaudit.errors import one_line

#: What torch compiles with.
COMPILER = "inductor"

_RECTIFIES: dict[str, tuple[Any, ...]] = {"call_function": (F.relu, torch.relu), "call_method": ("relu", "relu_")}
_ADDS: dict[str, tuple[Any, ...]] = {
    "call_function": (operator.add, operator.iadd, torch.add),
    "call_method": ("add",),
}


class Normalisation(nn.Module):
    """Normalises all channels of K models, each by itself; what is given are the K models' tensors, each ``[K, C]``."""

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, count: int, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = tensors.get("weight"), tensors.get("bias")
        self.running_mean, self.running_var = tensors["running_mean"], tensors["running_var"]
        self.momentum, self.eps = layer.momentum or 0.0, layer.eps

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Running means and variances, each ``[K·C]``, which training changes in place."""
        return self.running_mean.view(-1), self.running_var.view(-1)

    def scales(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Weights and biases, each ``[K·C]``, where there are some."""
        weight = None if self.weight is None else self.weight.flatten()
        return weight, None if self.bias is None else self.bias.flatten()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps ``[N, K·C, ...]``, normalised."""
        mean, variance = self.statistics()
        weight, bias = self.scales()
        return F.batch_norm(maps, mean, variance, weight, bias, self.training, self.momentum, self.eps)


class Rectified(nn.Module):
    """A normalisation, a shortcut's maps on top where there is one, and ReLU."""

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.normalisation = normalisation

    def forward(self, maps: torch.Tensor, shortcut: torch.Tensor | None = None) -> torch.Tensor:
        """Maps of the same shape."""
        layer = self.normalisation
        if not self.training:
            # Evaluation is rare: compiling for it, too, would take longer than it saves.
            maps = layer(maps)
            return F.relu(maps if shortcut is None else maps + shortcut)
        maps, *found = _compiled(COMPILER, layer.eps)(maps, shortcut, *layer.scales())
        for running, batch in zip(layer.statistics(), found, strict=True):
            # All layers' are parts of one vector: autograd would take this for a change of what others have saved.
            running.data.lerp_(batch, layer.momentum)
        return maps


@lru_cache
def _compiled(compiler: str, eps: float) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The compiled operation; eps is part of it, so that the host never has to tell it to a kernel."""

    def rectified(
        maps: torch.Tensor, shortcut: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        # Those of this batch alone: nothing that is compiled changes what it is given.
        kind = torch.float32 if maps.dtype == torch.bfloat16 else maps.dtype
        mean, variance = (maps.new_zeros(maps.shape[1], dtype=kind) for _ in range(2))
        maps = F.batch_norm(maps, mean, variance, weight, bias, training=True, momentum=1.0, eps=eps)
        return F.relu(maps if shortcut is None else maps + shortcut), mean, variance

    return torch.compile(rectified, dynamic=True, backend=compiler)


@lru_cache
def obstacle(device: torch.device) -> str:
    """Why torch cannot compile for a device; empty: it can. It takes seconds to find out."""

    def probe(values: torch.Tensor) -> torch.Tensor:
        return F.relu(values) + 1

    values = torch.ones(2, device=device, requires_grad=True)
    try:
        torch.autograd.grad(torch.compile(probe, backend=COMPILER)(values).sum(), values)
    except Exception as error:  # Whatever compilers raise.
        return f"torch cannot compile here, {one_line(error)}"
    return ""


def fuse(graph: fx.Graph, modules: dict[str, nn.Module]) -> int:
    """Replace normalisations that ReLU follows, directly or after a sum.

    Args:
        graph: A network's operations; changed.
        modules: Its layers by the names that the graph calls them; new ones are added.

    Returns:
        How many were replaced.
    """

    def layer_of(value: object) -> nn.Module | None:
        return modules[str(value.target)] if isinstance(value, fx.Node) and value.op == "call_module" else None

    def normalisation_of(value: object) -> Normalisation | None:
        """The layer, if it is one and nothing else reads what it gives."""
        layer = layer_of(value) if isinstance(value, fx.Node) and len(value.users) == 1 else None
        return layer if isinstance(layer, Normalisation) else None

    count = 0
    for node in list(graph.nodes):
        if not (_is(node, _RECTIFIES) or isinstance(layer_of(node), nn.ReLU)):
            continue
        source, shortcut, gone = node.args[0], None, [node]
        if _is(source, _ADDS) and len(source.users) == 1 and len(source.args) == 2 and not source.kwargs:
            gone.append(source)
            source, shortcut = source.args if normalisation_of(source.args[0]) else reversed(source.args)
        layer = normalisation_of(source)
        if layer is None or not isinstance(shortcut, fx.Node | None):
            continue
        name = f"rectified_{source.name}"
        modules[name] = Rectified(layer)
        with graph.inserting_before(node):
            new = graph.call_module(name, (source.args[0], shortcut))
        node.replace_all_uses_with(new)
        for old in (*gone, source):
            graph.erase_node(old)
        count += 1
    return count


def _is(node: object, kinds: Mapping[str, tuple[Any, ...]]) -> bool:
    return isinstance(node, fx.Node) and node.target in kinds.get(node.op, ())
