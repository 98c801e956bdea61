"""Physical removal of filters, with torch-pruning's dependency graph doing the wiring."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
import torch_pruning
from torch import nn

from pruneaudit.errors import MethodError
from pruneaudit.pruning.graph import coupled_norm, dependency_graph, group_of, loses_inputs
from pruneaudit.pruning.layers import PrunableLayer, block_of

Kept = Mapping[str, Sequence[int]]


def inputs_left(layers: Sequence[PrunableLayer], kept: Kept) -> dict[nn.Module, torch.Tensor]:
    """Input channels that stay of each layer that loses some when the layers keep only ``kept``.

    Args:
        layers: The prunable layers of one network, with their groups.
        kept: Filters that stay, by layer.

    Returns:
        Sorted indices ``[inputs that stay]`` by module; modules that lose none are left out.
    """
    left: dict[nn.Module, torch.Tensor] = {}
    for layer in layers:
        for item in layer.group:
            if loses_inputs(item.dep):
                # Behind a flattened map a filter has many inputs: the group says which of its filters each belongs to.
                roots = torch.tensor(list(item.root_idxs))
                stays = torch.isin(roots, torch.as_tensor(kept[layer.name]))
                left[item.dep.target.module] = torch.tensor(list(item.idxs))[stays]
    return left


def shrink(model: nn.Module, kept: Kept, example: torch.Tensor) -> nn.Module:
    """A copy of a network with only the kept filters, and everything that depends on them sliced alike.

    A layer that opens the branch of a residual block and keeps nothing takes the branch with it.

    Args:
        model: The dense network; not changed.
        kept: For each pruned layer, the sorted indices of the filters that stay.
        example: One input, ``[1, C, H, W]``.

    Returns:
        A new, smaller network.

    Raises:
        MethodError: A layer shares its channels with another layer (on a residual stream, say).
    """
    network = copy.deepcopy(model)
    graph = dependency_graph(network, example)
    modules = dict(network.named_modules())
    for name, indices in kept.items():
        module = modules[name]
        channels = module.weight.shape[0]
        removed = sorted(set(range(channels)) - set(indices))
        if not removed:
            continue
        block = block_of(network, name)
        if not indices and block is not None:
            for part in block.branch:
                setattr(block, part, None)
            continue
        group = group_of(graph, module, removed)
        for item in group:
            target = item.dep.target.module
            loses_filters = item.dep.handler in (
                torch_pruning.prune_conv_out_channels,
                torch_pruning.prune_linear_out_channels,
            )
            if loses_filters and target is not module:
                other = next((key for key, value in modules.items() if value is target), "?")
                raise MethodError(f"layer '{name}' cannot be pruned alone: it shares its channels with '{other}'")
        group.prune()
    return network


def masked(model: nn.Module, kept: Kept, example: torch.Tensor) -> nn.Module:
    """A copy of a network with the removed filters silenced but still there: the reference that ``shrink`` must equal.

    Weights and biases of removed filters become zero, and so do scale and shift of the normalisation behind them, so
    that a removed channel carries exactly zero.
    """
    network = copy.deepcopy(model)
    graph = dependency_graph(network, example)
    modules = dict(network.named_modules())
    with torch.no_grad():
        for name, indices in kept.items():
            module = modules[name]
            removed = sorted(set(range(module.weight.shape[0])) - set(indices))
            norm = coupled_norm(graph, module)
            block = block_of(network, name)
            if not indices and block is not None:
                # A branch without filters still carries the shift of its last normalisation.
                last = getattr(block, block.branch[-1])
                last.weight.zero_()
                last.bias.zero_()
            for owner in (module, norm):
                for parameter in () if owner is None else (owner.weight, owner.bias):
                    if parameter is not None:
                        parameter[removed] = 0
            if norm is not None and norm.running_mean is not None:
                norm.running_mean[removed] = 0
    return network


def thinned(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a network whose removed weights are zero.

    Args:
        model: The dense network; not changed.
        masks: For each layer which weights stay, bool, in the shape of its weights.
    """
    network = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = network.get_parameter(f"{name}.weight")
            weight.masked_fill_(~mask.to(weight.device), 0)
    return network


def widths_to_kept(widths: Mapping[str, int]) -> dict[str, list[int]]:
    """Any filters that give a layer its width: the shape is what counts when weights are drawn anew."""
    return {name: list(range(width)) for name, width in widths.items()}
