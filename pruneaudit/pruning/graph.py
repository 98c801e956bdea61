"""Torch-pruning's dependency graph of a network: what loses channels together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning
from torch import nn


def dependency_graph(model: nn.Module, example: torch.Tensor) -> Any:
    """Torch-pruning's dependency graph of a network, of frozen parameters, too."""
    was_training = model.training
    parameter = next(model.parameters())
    frozen = [one for one in model.parameters() if not one.requires_grad and one.is_floating_point()]
    # Its tracing follows autograd's graph, and does not see layers that ask for no gradient.
    try:
        for one in frozen:
            one.requires_grad_(True)
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(model.eval(), example_inputs=example.to(parameter))
    finally:
        for one in frozen:
            one.requires_grad_(False)
    model.train(was_training)
    return graph


def _prune_function(module: nn.Module) -> Any:
    if isinstance(module, nn.Linear):
        return torch_pruning.prune_linear_out_channels
    return torch_pruning.prune_conv_out_channels


def group_of(graph: Any, module: nn.Module, removed: Sequence[int] | None = None) -> Any:
    """Everything that loses channels when a layer loses some filters (default: all), as torch-pruning's group."""
    indices = list(range(len(module.get_parameter("weight")))) if removed is None else list(removed)
    return graph.get_pruning_group(module, _prune_function(module), idxs=indices)


def loses_inputs(dependency: Any) -> bool:
    """Whether an item of a group is a layer that loses input channels."""
    return dependency.handler in (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)


def coupled_norm(graph: Any, module: nn.Module) -> nn.BatchNorm2d | None:
    """The batch normalisation that loses channels together with ``module``, or None."""
    for item in group_of(graph, module, [0]):
        target = item.dep.target.module
        if isinstance(target, nn.BatchNorm2d):
            return target
    return None
