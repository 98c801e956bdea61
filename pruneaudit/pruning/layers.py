"""Prunable layers of a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import Granularity
from pruneaudit.pruning.graph import coupled_norm, dependency_graph, group_of


@dataclass(frozen=True)
class PrunableLayer:
    """A convolution whose filters a method may score and remove.

    Attributes:
        name: Module name, such as ``"layer1.0.conv1"``.
        module: The convolution (or linear layer).
        norm: The batch normalisation that follows it in the graph, or None.
        group: Torch-pruning's group of everything that loses channels with it, over all of its filters; its importance
            criteria take it.
        block: The residual block whose branch it opens, or None.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    group: Any = field(default=None, repr=False, compare=False)
    block: Any = field(default=None, repr=False, compare=False)

    @property
    def weight(self) -> torch.Tensor:
        """Weights, ``[out_channels, in_channels, kH, kW]``."""
        return self.module.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias ``[out_channels]`` or None."""
        return self.module.bias

    @property
    def channels(self) -> int:
        """Number of filters."""
        return self.weight.shape[0]


def prunable_names(model: nn.Module, patterns: tuple[str, ...], skip: tuple[str, ...] = ()) -> list[str]:
    """Names of the layers that the patterns select, in module order.

    Raises:
        ConfigError: A pattern selects nothing.
    """
    candidates = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for pattern in (*patterns, *skip):
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ConfigError(f"prunable pattern '{pattern}' matches no layer; layers: {', '.join(candidates)}")
    return [
        name
        for name in candidates
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and not any(fnmatchcase(name, pattern) for pattern in skip)
    ]


def weight_names(model: nn.Module) -> list[str]:
    """Names of the layers that may lose single weights: all convolutions and linear layers but the classifier.

    The choice of ShrinkBench (Blalock et al. 2020); patterns of prunable filters are about wiring and do not count.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return names[:-1]


def block_of(model: nn.Module, name: str) -> Any:
    """The residual block whose branch a layer opens, or None.

    Such a block names the modules of its branch (``branch``), and does without them once they are None.
    """
    parent, _, own = name.rpartition(".")
    module = model.get_submodule(parent)
    branch = getattr(module, "branch", ())
    return module if branch and branch[0] == own else None


def prunable_layers(
    model: nn.Module,
    example: torch.Tensor,
    patterns: tuple[str, ...],
    skip: tuple[str, ...] = (),
    granularity: Granularity = "filter",
) -> list[PrunableLayer]:
    """The layers that the patterns select, each with what its channels pass.

    Args:
        model: The dense network.
        example: One input, ``[1, C, H, W]``.
        patterns: Shell-style patterns of module names.
        skip: Patterns taken out again.
        granularity: What is to be removed: ``weight`` selects other layers, ``block`` those that open a branch.

    Raises:
        ConfigError: A pattern selects nothing.
    """
    graph = dependency_graph(model, example)
    modules = dict(model.named_modules())
    names = weight_names(model) if granularity == "weight" else prunable_names(model, patterns, skip)
    layers = [
        PrunableLayer(
            name,
            modules[name],
            coupled_norm(graph, modules[name]),
            None if granularity == "weight" else group_of(graph, modules[name]),
            block_of(model, name),
        )
        for name in names
    ]
    return [layer for layer in layers if granularity != "block" or layer.block is not None]
