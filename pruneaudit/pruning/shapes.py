"""Shapes of a workload's networks, known before anything trains: widths, MACs and parameters at each ratio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from pruneaudit.ledger.records import Granularity, Scope, Target
from pruneaudit.measure.cost import macs, macs_by_layer, macs_by_torch, macs_by_torch_of_weights, parameters
from pruneaudit.pruning.layers import block_of, prunable_names, weight_names
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.pruning.removal import dependency_graph, group_of, loses_inputs, shrink, widths_to_kept
from pruneaudit.workloads.data import facts
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.brought import check_logits
from pruneaudit.workloads.schema import DataConfig, Network, Workload


@dataclass(frozen=True)
class Shape:
    """A network's size.

    Attributes:
        widths: Filters left in each pruned layer (empty: dense).
        macs: MACs of one image, counted by fvcore.
        recounted: The same, counted by torch: the audit asks that both agree.
        params: Parameters.
    """

    widths: tuple[tuple[str, int], ...]
    macs: int
    recounted: int
    params: int


@dataclass(frozen=True)
class Costs:
    """MACs of a network of any widths, or with any weights left, without building it.

    A layer costs in proportion to its filters and to its inputs, and both follow from the filters left in the prunable
    layers.

    Attributes:
        macs: MACs of each layer of the dense network.
        weights: Weights of each layer.
        filters: Filters of each prunable layer of the dense network.
        outputs: Prunable layers whose filters a layer's outputs are: itself, for one that is prunable.
        inputs: Prunable layers whose filters a layer's inputs are.
        blocks: All layers of the residual branch that a prunable layer opens.
    """

    macs: Mapping[str, int]
    weights: Mapping[str, int]
    filters: Mapping[str, int]
    outputs: Mapping[str, str]
    inputs: Mapping[str, str]
    blocks: Mapping[str, tuple[str, ...]]

    def of_widths(self, widths: Mapping[str, int]) -> int:
        """MACs with so many filters in each prunable layer; all stay in those that are not named.

        A layer that opens a residual branch and keeps none takes the branch with it.
        """
        gone = {name for opening, branch in self.blocks.items() if widths.get(opening) == 0 for name in branch}
        found = 0
        for name, cost in self.macs.items():
            if name in gone:
                continue
            for source in (self.outputs.get(name), self.inputs.get(name)):
                if source is not None:
                    filters = self.filters[source]
                    cost = cost // filters * widths.get(source, filters)
            found += cost
        return found

    def of_weights(self, stay: Mapping[str, int]) -> int:
        """MACs with weights that are not zero, with so many left in each layer; all stay in those not named."""
        return sum(self.of_weight(name) * stay.get(name, count) for name, count in self.weights.items())

    def of_weight(self, name: str) -> int:
        """MACs of one weight of a layer: the pixels that it is applied to."""
        return self.macs[name] // self.weights[name]


def costs(workload: Workload) -> Costs:
    """Costs of a workload's network."""
    return _costs(workload.network, workload.data, workload.prunable, workload.skip)


@lru_cache(maxsize=64)
def _costs(model: Network, data: DataConfig, prunable: tuple[str, ...], skip: tuple[str, ...]) -> Costs:
    network = _network(model, data, {})
    modules = dict(network.named_modules())
    names = {module: name for name, module in modules.items()}
    graph = dependency_graph(network, _example(data))
    chosen = prunable_names(network, prunable, skip)
    outputs, inputs = {}, {}
    for name in chosen:
        outputs[name] = name
        for item in group_of(graph, modules[name]):
            if loses_inputs(item.dep):
                inputs[names[item.dep.target.module]] = name
    macs_of = macs_by_layer(network, _example(data))
    return Costs(
        macs_of,
        {name: modules[name].weight.numel() for name in macs_of},
        {name: modules[name].weight.shape[0] for name in chosen},
        outputs,
        inputs,
        {name: _branch(name, block, macs_of) for name in chosen if (block := block_of(network, name)) is not None},
    )


def _branch(name: str, block: Any, layers: Iterable[str]) -> tuple[str, ...]:
    """Layers of the residual branch that a layer opens."""
    parent = name.rpartition(".")[0]
    return tuple(layer for layer in layers if layer in {f"{parent}.{part}" for part in block.branch})


def target(workload: Workload, ratio: float, granularity: Granularity = "filter", scope: Scope = "layerwise") -> Target:
    """What a method is asked to remove at a ratio."""
    known = costs(workload)
    if granularity == "weight":
        # Shares of single layers are about filters; the ratio is one of weights.
        names = weight_names(_network(workload.network, workload.data, {}))
        counts = {name: known.weights[name] for name in names}
        shares = dict.fromkeys(names, ratio)
    else:
        counts = dict(known.filters)
        shares = {name: workload.ratio_of(name, ratio) for name in counts}
    stay = {name: count - removed_filters(count, shares[name]) for name, count in counts.items()}
    if granularity == "weight":
        reached = known.of_weights(stay)
        unit = max(map(known.of_weight, counts))
    else:
        reached = known.of_widths(stay)
        everything = known.of_widths({})
        opening = known.blocks if granularity == "block" else counts
        lost = {name: 0 if granularity == "block" else known.filters[name] - 1 for name in opening}
        unit = max((everything - known.of_widths({name: width}) for name, width in lost.items()), default=0)
    share = None
    if scope == "global" and granularity == "weight":
        # Papers state a share of weights; as many as layerwise arms keep, to the weight.
        share = sum(stay.values())
    elif scope == "global" and granularity == "filter" and workload.operating_point == "share":
        total = sum(counts.values())
        # One filter of each layer stays, as where every layer loses its share.
        share = max(total - removed_filters(total, ratio), len(counts))
    return Target(
        granularity=granularity,
        scope=scope,
        stay=stay,
        macs=reached,
        unit=unit,
        share=share,
    )


def missed(asked: Target, stay: Mapping[str, int], known: Costs) -> str:
    """How filters (weights) that stay miss what one threshold for all layers was to reach, or nothing.

    The MACs that are left must be as near as one filter (block) allows, a share of all filters or weights exact.
    """
    if asked.share is not None:
        total = sum(stay.values())
        return "" if total == asked.share else f"{total} {asked.granularity}s stay, not {asked.share}"
    macs_left = known.of_widths(stay)
    if abs(macs_left - asked.macs) <= asked.unit:
        return ""
    return f"{macs_left} MACs are left, not {asked.macs} (one {asked.granularity} has {asked.unit})"


def example(workload: Workload) -> torch.Tensor:
    """A zero input of the workload, ``[1, C, H, W]``."""
    return _example(workload.data)


def check(workload: Workload) -> None:
    """Refuse a user's network that does not map inputs of the workload's data to logits of its classes.

    Raises:
        ConfigError: In one line what it does instead.
    """
    if workload.model_source:
        sizes, one = facts(workload.data), example(workload)
        check_logits(workload.network, sizes.channels, sizes.classes, sizes.shape, one.dtype)


def dense_network(workload: Workload) -> nn.Module:
    """The workload's dense network, freshly built; its weights are to be replaced."""
    return _network(workload.network, workload.data, {})


def network(workload: Workload, widths: dict[str, int]) -> nn.Module:
    """A network of the given widths; its weights are to be replaced."""
    return _network(workload.network, workload.data, widths)


def _example(data: DataConfig) -> torch.Tensor:
    return facts(data).example()


def _dense(model: Network, data: DataConfig) -> nn.Module:
    sizes = facts(data)
    return build(model, sizes.channels, sizes.classes)


def _network(model: Network, data: DataConfig, widths: dict[str, int]) -> nn.Module:
    dense = _dense(model, data)
    return shrink(dense, widths_to_kept(widths), _example(data)) if widths else dense


def widths_at(workload: Workload, ratio: float) -> dict[str, int]:
    """Filters that each prunable layer keeps at a ratio."""
    widths = _prunable_widths(workload.network, workload.data, workload.prunable, workload.skip)
    return {name: count - removed_filters(count, workload.ratio_of(name, ratio)) for name, count in widths}


@lru_cache(maxsize=64)
def _prunable_widths(
    model: Network, data: DataConfig, prunable: tuple[str, ...], skip: tuple[str, ...]
) -> tuple[tuple[str, int], ...]:
    """Filters of each prunable layer of the dense network."""
    dense = _dense(model, data)
    modules = dict(dense.named_modules())
    return tuple((name, int(modules[name].weight.shape[0])) for name in prunable_names(dense, prunable, skip))


@lru_cache(maxsize=512)
def _shape(model: Network, data: DataConfig, widths: tuple[tuple[str, int], ...]) -> Shape:
    """Counting takes a second for a large network: cached by what it depends on, whatever the recipes."""
    built = _network(model, data, dict(widths))
    return Shape(widths, macs(built, _example(data)), macs_by_torch(built, _example(data)), parameters(built))


def shape_of(workload: Workload, widths: dict[str, int]) -> Shape:
    """Size of the network with the given widths (none: dense)."""
    return _shape(workload.network, workload.data, tuple(widths.items()))


def shape_of_weights(workload: Workload, stay: Mapping[str, int]) -> Shape:
    """Size of the dense network with so many weights left in some layers; what is zero counts nothing."""
    network = _network(workload.network, workload.data, {})
    known = costs(workload)
    removed = sum(known.weights[name] - count for name, count in stay.items())
    recounted = macs_by_torch_of_weights(network, _example(workload.data), stay)
    return Shape((), known.of_weights(stay), recounted, parameters(network) - removed)


def shape(workload: Workload, ratio: float | None = None) -> Shape:
    """Size of the dense network (ratio None) or of the one that a layerwise method leaves at a ratio."""
    return shape_of(workload, {} if ratio is None else widths_at(workload, ratio))


def speedup(workload: Workload, ratio: float) -> float:
    """MACs(base) / MACs(pruned) at a ratio."""
    return shape(workload).macs / shape(workload, ratio).macs
