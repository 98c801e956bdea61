"""Shapes of a workload's networks, known before anything trains: widths, MACs and parameters at each ratio."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from pruneaudit.config import Workload
from pruneaudit.measure.cost import macs, parameters
from pruneaudit.pruning.layers import prunable_names, removed_filters
from pruneaudit.pruning.removal import shrink, widths_to_kept
from pruneaudit.workloads.datasets import facts
from pruneaudit.workloads.models import build


@dataclass(frozen=True)
class Shape:
    """A network's size.

    Attributes:
        widths: Filters left in each pruned layer (empty: dense).
        macs: MACs of one image.
        params: Parameters.
    """

    widths: tuple[tuple[str, int], ...]
    macs: int
    params: int


def example(workload: Workload) -> torch.Tensor:
    """A zero input of the workload, ``[1, C, H, W]``."""
    sizes = facts(workload.data)
    return torch.zeros(1, sizes.channels, sizes.height, sizes.height)


def dense_network(workload: Workload) -> nn.Module:
    """The workload's dense network, freshly built; its weights are to be replaced."""
    sizes = facts(workload.data)
    return build(workload.model, sizes.channels, sizes.classes)


def network(workload: Workload, widths: dict[str, int]) -> nn.Module:
    """A network of the given widths; its weights are to be replaced."""
    dense = dense_network(workload)
    return shrink(dense, widths_to_kept(widths), example(workload)) if widths else dense


def widths_at(workload: Workload, ratio: float) -> dict[str, int]:
    """Filters that each prunable layer keeps at a ratio."""
    model = dense_network(workload)
    modules = dict(model.named_modules())
    names = prunable_names(model, workload.prunable, workload.skip)
    channels = {name: int(modules[name].weight.shape[0]) for name in names}
    return {name: count - removed_filters(count, ratio) for name, count in channels.items()}


@lru_cache(maxsize=512)
def _shape(workload: Workload, widths: tuple[tuple[str, int], ...]) -> Shape:
    built = network(workload, dict(widths))
    return Shape(widths, macs(built, example(workload)), parameters(built))


def shape_of(workload: Workload, widths: dict[str, int]) -> Shape:
    """Size of the network with the given widths (none: dense)."""
    return _shape(workload, tuple(widths.items()))


def shape(workload: Workload, ratio: float | None = None) -> Shape:
    """Size of the dense network (ratio None) or of the one that a layerwise method leaves at a ratio."""
    return shape_of(workload, {} if ratio is None else widths_at(workload, ratio))


def speedup(workload: Workload, ratio: float) -> float:
    """MACs(base) / MACs(pruned) at a ratio."""
    return shape(workload).macs / shape(workload, ratio).macs
