"""Prunable layers of a network."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from pruneaudit.errors import ConfigError


@dataclass(frozen=True)
class PrunableLayer:
    """A convolution whose filters a method may score and remove.

    Attributes:
        name: Module name, such as ``"layer1.0.conv1"``.
        module: The convolution (or linear layer).
        norm: The batch normalisation that follows it in the graph, or None.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None

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


def prunable_layers(
    model: nn.Module, example: torch.Tensor, patterns: tuple[str, ...], skip: tuple[str, ...] = ()
) -> list[PrunableLayer]:
    """The layers that the patterns select, each with the normalisation that its channels pass.

    Args:
        model: The dense network.
        example: One input, ``[1, C, H, W]``.
        patterns: Shell-style patterns of module names.
        skip: Patterns taken out again.

    Raises:
        ConfigError: A pattern selects nothing.
    """
    from pruneaudit.pruning.removal import coupled_norm, dependency_graph

    graph = dependency_graph(model, example)
    modules = dict(model.named_modules())
    return [
        PrunableLayer(name, modules[name], coupled_norm(graph, modules[name]))
        for name in prunable_names(model, patterns, skip)
    ]
