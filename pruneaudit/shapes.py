"""Shapes of a workload's networks, known before anything trains: widths, MACs and parameters at each ratio."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from pruneaudit.config import DataConfig, Workload
from pruneaudit.measure.cost import macs, macs_by_torch, parameters
from pruneaudit.pruning.layers import prunable_names
from pruneaudit.pruning.removal import shrink, widths_to_kept
from pruneaudit.ratios import removed_filters
from pruneaudit.workloads.datasets import facts
from pruneaudit.workloads.models import build


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


def example(workload: Workload) -> torch.Tensor:
    """A zero input of the workload, ``[1, C, H, W]``."""
    return _example(workload.data)


def dense_network(workload: Workload) -> nn.Module:
    """The workload's dense network, freshly built; its weights are to be replaced."""
    return _network(workload.model, workload.data, {})


def network(workload: Workload, widths: dict[str, int]) -> nn.Module:
    """A network of the given widths; its weights are to be replaced."""
    return _network(workload.model, workload.data, widths)


def _example(data: DataConfig) -> torch.Tensor:
    sizes = facts(data)
    return torch.zeros(1, sizes.channels, sizes.height, sizes.height)


def _network(model: str, data: DataConfig, widths: dict[str, int]) -> nn.Module:
    sizes = facts(data)
    dense = build(model, sizes.channels, sizes.classes)
    return shrink(dense, widths_to_kept(widths), _example(data)) if widths else dense


def widths_at(workload: Workload, ratio: float) -> dict[str, int]:
    """Filters that each prunable layer keeps at a ratio."""
    widths = _prunable_widths(workload.model, workload.data, workload.prunable, workload.skip)
    return {name: count - removed_filters(count, ratio) for name, count in widths}


@lru_cache(maxsize=64)
def _prunable_widths(
    model: str, data: DataConfig, prunable: tuple[str, ...], skip: tuple[str, ...]
) -> tuple[tuple[str, int], ...]:
    """Filters of each prunable layer of the dense network."""
    sizes = facts(data)
    dense = build(model, sizes.channels, sizes.classes)
    modules = dict(dense.named_modules())
    return tuple((name, int(modules[name].weight.shape[0])) for name in prunable_names(dense, prunable, skip))


@lru_cache(maxsize=512)
def _shape(model: str, data: DataConfig, widths: tuple[tuple[str, int], ...]) -> Shape:
    """Counting takes a second for a large network: cached by what it depends on, whatever the recipes."""
    built = _network(model, data, dict(widths))
    return Shape(widths, macs(built, _example(data)), macs_by_torch(built, _example(data)), parameters(built))


def shape_of(workload: Workload, widths: dict[str, int]) -> Shape:
    """Size of the network with the given widths (none: dense)."""
    return _shape(workload.model, workload.data, tuple(widths.items()))


def shape(workload: Workload, ratio: float | None = None) -> Shape:
    """Size of the dense network (ratio None) or of the one that a layerwise method leaves at a ratio."""
    return shape_of(workload, {} if ratio is None else widths_at(workload, ratio))


def speedup(workload: Workload, ratio: float) -> float:
    """MACs(base) / MACs(pruned) at a ratio."""
    return shape(workload).macs / shape(workload, ratio).macs
