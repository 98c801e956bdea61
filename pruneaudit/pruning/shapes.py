"""Shapes of a workload's networks, known before anything trains: widths, MACs and parameters at each ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import Granularity, Scope, Target
from pruneaudit.measure.cost import macs, macs_by_layer, macs_by_torch, macs_by_torch_of_weights, parameters
from pruneaudit.measure.skeleton import Found, on_skeleton
from pruneaudit.pruning.attention import attention_of, joined_name
from pruneaudit.pruning.equivalence import verified
from pruneaudit.pruning.graph import LAYERS, is_depthwise
from pruneaudit.pruning.layers import AUTO, prunable_layers, prunable_names, prunable_units, weight_names
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.pruning.removal import block_name, narrowed, units_named
from pruneaudit.pruning.slicing import channels_of
from pruneaudit.pruning.units import Unit, Wiring, joined
from pruneaudit.workloads.data import facts
from pruneaudit.workloads.models import MODELS, build
from pruneaudit.workloads.models.brought import check_logits
from pruneaudit.workloads.models.described import Decoder, narrow
from pruneaudit.workloads.models.initialise import undrawn
from pruneaudit.workloads.schema import DataConfig, Network, Workload

#: Networks whose units the project's own tests try, pattern by pattern: planning need not.
_OWN = frozenset(MODELS)
#: Tokens on which units of decoders are tried.
_TRIED = 8


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
class Width:
    """Channels of one side of a layer, as a function of the widths of units.

    Attributes:
        channels: Of the dense network.
        each: How many of them belong to one channel of a unit, by unit.
    """

    channels: int
    each: tuple[tuple[str, int], ...] = ()

    def left(self, removed: Mapping[str, int]) -> int:
        """Channels that stay when units lose some."""
        return self.channels - sum(count * removed.get(name, 0) for name, count in self.each)


@dataclass(frozen=True)
class Costs:
    """MACs of a network of any widths, or with any weights left, without building it.

    A layer costs in proportion to its outputs and to its inputs, and both follow from the channels left in the units.

    Attributes:
        macs: MACs of each layer of the dense network, and of other modules that multiply matrices: attention, which
            costs in proportion to its heads.
        weights: Weights of each layer.
        filters: Channels of each unit of the dense network.
        steps: Channels of each unit are removed in multiples of this number.
        outputs: What a layer writes.
        inputs: What a layer reads; of a depthwise convolution nothing of its own.
        blocks: All layers of the residual branch that a prunable layer opens.
    """

    macs: Mapping[str, int]
    weights: Mapping[str, int]
    filters: Mapping[str, int]
    steps: Mapping[str, int]
    outputs: Mapping[str, Width]
    inputs: Mapping[str, Width]
    blocks: Mapping[str, tuple[str, ...]]

    def of_widths(self, widths: Mapping[str, int]) -> int:
        """MACs with so many channels in each unit; all stay in those that are not named.

        A layer that opens a residual branch and keeps none takes the branch with it.
        """
        gone = {name for opening, branch in self.blocks.items() if widths.get(opening) == 0 for name in branch}
        removed = {name: self.filters[name] - width for name, width in widths.items()}
        found = 0
        for name, cost in self.macs.items():
            if name in gone:
                continue
            for side in (self.outputs.get(name), self.inputs.get(name)):
                if side is not None:
                    cost = cost * side.left(removed) // side.channels
            found += cost
        return found

    def of_weights(self, stay: Mapping[str, int]) -> int:
        """MACs with weights that are not zero, with so many left in each layer; all stay in those not named."""
        others = sum(count for name, count in self.macs.items() if name not in self.weights)
        return others + sum(self.of_weight(name) * stay.get(name, count) for name, count in self.weights.items())

    def of_weight(self, name: str) -> int:
        """MACs of one weight of a layer: the pixels that it is applied to."""
        return self.macs[name] // self.weights[name]


def costs(workload: Workload) -> Costs:
    """Costs of a workload's network."""
    return _costs(workload.network, workload.data, workload.prunable, workload.skip)


@lru_cache(maxsize=64)
def _costs(model: Network, data: DataConfig, prunable: tuple[str, ...], skip: tuple[str, ...]) -> Costs:
    network = _bare(model, data)
    modules = dict(network.named_modules())
    units = _units(model, data, prunable, skip).units
    macs_of = macs_by_layer(network, _example(data))
    sides: dict[str, dict[str, dict[str, int]]] = {"outputs": {}, "inputs": {}}
    for unit in units:
        for member in unit.members:
            if member.module in macs_of:
                sides[member.side].setdefault(member.module, {})[unit.name] = member.places.shape[1]
    outputs, inputs = (
        {name: Width(channels_of(modules[name], side), tuple(each.items())) for name, each in found.items()}
        for side, found in sides.items()
    )
    return Costs(
        macs_of,
        {name: modules[name].weight.numel() for name in macs_of if isinstance(modules[name], LAYERS)},
        {unit.name: unit.channels for unit in units},
        {unit.name: unit.step for unit in units},
        outputs,
        {name: width for name, width in inputs.items() if not is_depthwise(modules[name])},
        {
            unit.name: _branch(owner, modules[owner], macs_of)
            for unit in units
            if not unit.normalised and (owner := block_name(network, unit.name)) is not None
        },
    )


@dataclass(frozen=True, eq=False)
class Units:
    """What can be removed from a workload's network.

    Attributes:
        units: Units that its patterns select, in module order.
        refused: Why other layers cannot lose filters, by name, where ``auto`` looked for all.
    """

    units: tuple[Unit, ...]
    refused: Mapping[str, str]


def units(workload: Workload) -> Units:
    """Units of a workload's network, tried on it: removing one computes what silencing it computes.

    Raises:
        ConfigError: Patterns name a layer of which that is not so, or that cannot lose filters.
    """
    return _units(workload.network, workload.data, workload.prunable, workload.skip)


def see_units(workload: Workload) -> None:
    """See before anything trains that all that is to be removed can be.

    Quick for the networks of this project, whose patterns its tests try, unless they reach the classifier.

    Raises:
        ConfigError: Patterns name a layer that cannot lose filters.
    """
    patterns = (workload.network, workload.data, workload.prunable, workload.skip)
    if workload.model not in _OWN or workload.prunable == AUTO or _names_classifier(*patterns):
        units(workload)


@lru_cache(maxsize=64)
def _names_classifier(model: Network, data: DataConfig, prunable: tuple[str, ...], skip: tuple[str, ...]) -> bool:
    """Whether patterns name a network's last layer."""
    network = _bare(model, data)
    return weight_names(network, last=True)[-1] in prunable_names(network, prunable, skip)


def without_norm(workload: Workload) -> str | None:
    """Why a workload is nothing for methods that take each prunable layer's batch normalisation, or None."""
    return _without_norm(workload.network, workload.data, workload.prunable, workload.skip)


@lru_cache(maxsize=64)
def _without_norm(model: Network, data: DataConfig, prunable: tuple[str, ...], skip: tuple[str, ...]) -> str | None:
    def look(network: nn.Module, example: torch.Tensor) -> str | None:
        layers = prunable_layers(network, example, prunable, skip)
        return next((f"no batch normalisation behind {layer.name}" for layer in layers if layer.norm is None), None)

    return _looked(_asked(model, data, prunable), _example(data), prunable, look)


def _looked(
    network: nn.Module,
    example: torch.Tensor,
    prunable: tuple[str, ...],
    look: Callable[[nn.Module, torch.Tensor], Found],
) -> Found:
    """What is found of a network's units, by name: without weights, unless these are asked for.

    With ``auto``, units are tried on weights.
    """
    return look(network, example) if prunable == AUTO else on_skeleton(network, example, look)


def not_alone(workload: Workload) -> str | None:
    """Why a workload is nothing for methods that take layers which lose filters alone and are read alone, or None."""
    modules = dict(_bare(workload.network, workload.data).named_modules())
    return next((problem for unit in units(workload).units if (problem := joined(unit, modules))), None)


def not_normalised(workload: Workload) -> str | None:
    """Why a workload is nothing for methods that rotate what only normalisations see, or None."""
    other = next((unit.name for unit in units(workload).units if not unit.normalised), None)
    return other and f"the channels of {other} are read one by one, and not through normalisations of all of them"


def blocks_attend(workload: Workload) -> bool:
    """Whether a workload's network has residual blocks to remove, and attention is a part of each."""
    modules = dict(_bare(workload.network, workload.data).named_modules())
    blocks = costs(workload).blocks
    return bool(blocks) and all(
        any(attention_of(modules[name]) is not None for name in branch) for branch in blocks.values()
    )


def without_pattern(workload: Workload, neighbours: int) -> str | None:
    """Why a workload is nothing for methods that remove n of so many neighbouring inputs (n:m), or None."""
    rows = _rows(workload.network, workload.data).items()
    wrong = next(((name, row) for name, row in rows if row % neighbours), None)
    return wrong and f"{wrong[0]} has {wrong[1]} weights for each output, no multiple of {neighbours}"


@lru_cache(maxsize=64)
def _rows(model: Network, data: DataConfig) -> dict[str, int]:
    """Weights of each output of the layers that may lose single weights."""
    network = _bare(model, data)
    return {name: network.get_parameter(f"{name}.weight")[0].numel() for name in weight_names(network)}


@lru_cache(maxsize=64)
def _units(model: Network, data: DataConfig, prunable: tuple[str, ...], skip: tuple[str, ...]) -> Units:
    network, example = _asked(model, data, prunable), _example(data)
    if isinstance(network, Decoder):
        return _units_of_decoder(network, model, example, prunable, skip)

    def look(network: nn.Module, example: torch.Tensor) -> tuple[list[Unit], dict[str, str]]:
        return prunable_units(network, Wiring(network, example), example, prunable, skip)

    found, refused = _looked(network, example, prunable, look)
    if prunable != AUTO and model.model not in _OWN:
        found, wrong = verified(network, found, example)
        for name, why in wrong.items():
            raise ConfigError(_refusal(name, why))
    return Units(tuple(found), refused)


def _units_of_decoder(
    network: Decoder, model: Network, example: torch.Tensor, prunable: tuple[str, ...], skip: tuple[str, ...]
) -> Units:
    """Units of a network that has no weights: found by how it is built, and tried on a narrow one of its kind.

    What holds of a unit there holds of those of its name in all layers.

    Raises:
        ConfigError: Patterns name a layer that cannot lose filters, or that tokens do not reach.
    """
    apart = tuple(f"{name}." for name in network.protected)
    chosen = prunable_names(network, prunable, skip)
    refused = {name: "tokens do not pass it" for name in chosen if f"{name}.".startswith(apart)}
    wiring = Wiring(network.to("meta"), example.to("meta"))
    found, others = wiring.units([name for name in chosen if name not in refused])
    found = [unit for unit in found if not any(fnmatchcase(name, each) for name in unit.producers for each in skip)]
    small, few = narrow(model), example[:, :_TRIED]
    kinds = {_kind(unit.name) for unit in found}
    names = [name for name, _ in small.named_modules() if _kind(name) in kinds]
    tried, wrong = Wiring(small, few).units(names)
    wrong |= verified(small, tried, few)[1]
    whys = {_kind(name): why for name, why in wrong.items()}
    bad = {unit.name: whys[_kind(unit.name)] for unit in found if _kind(unit.name) in whys}
    refused |= others | bad
    for name, why in () if prunable == AUTO else refused.items():
        raise ConfigError(_refusal(name, why))
    return Units(tuple(unit for unit in found if unit.name not in bad), refused)


def _kind(name: str) -> str:
    """A module's name without the numbers of layers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _refusal(name: str, why: str) -> str:
    return f"prunable: layer '{name}' cannot lose filters: {why}; name other layers, or add it to skip"


def _branch(owner: str, block: Any, layers: Iterable[str]) -> tuple[str, ...]:
    """Layers of a residual block's branch, at any depth."""
    starts = tuple(f"{joined_name(owner, part)}." for part in block.branch)
    return tuple(layer for layer in layers if f"{layer}.".startswith(starts))


def target(workload: Workload, ratio: float, granularity: Granularity = "filter", scope: Scope = "layerwise") -> Target:
    """What a method is asked to remove at a ratio."""
    known = costs(workload)
    if granularity == "weight":
        # Shares of single layers are about filters; the ratio is one of weights.
        names = weight_names(_bare(workload.network, workload.data))
        counts = {name: known.weights[name] for name in names}
        shares = dict.fromkeys(names, ratio)
    else:
        counts = dict(known.filters)
        shares = {name: workload.ratio_of(name, ratio) for name in counts}
    steps = dict.fromkeys(counts, 1) if granularity == "weight" else known.steps
    stay = {
        name: count - removed_filters(count // steps[name], shares[name]) * steps[name]
        for name, count in counts.items()
    }
    if granularity == "weight":
        reached = known.of_weights(stay)
        unit = max(map(known.of_weight, counts))
    else:
        reached = known.of_widths(stay)
        everything = known.of_widths({})
        opening = known.blocks if granularity == "block" else counts
        lost = {name: 0 if granularity == "block" else known.filters[name] - steps[name] for name in opening}
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
        # To the filter, unless several go at once.
        largest = max(known.steps.values(), default=1) if asked.granularity == "filter" else 1
        near = abs(total - asked.share) < largest
        return "" if near else f"{total} {asked.granularity}s stay, not {asked.share}"
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
    if workload.network.described is not None:
        # What takes tokens and gives logits is this project's own.
        dense_network(workload)
    elif workload.model_source:
        sizes, one = facts(workload.data), example(workload)
        check_logits(workload.network, sizes.channels, sizes.classes, sizes.shape, one.dtype, sizes.labels)


def dense_network(workload: Workload) -> nn.Module:
    """The workload's dense network, freshly built; its weights are to be replaced."""
    return _dense(workload.network, workload.data)


def network(workload: Workload, widths: dict[str, int]) -> nn.Module:
    """A network of the given widths; its weights are to be replaced."""
    return _network(workload.network, workload.data, widths)


def _example(data: DataConfig) -> torch.Tensor:
    return facts(data).example()


def _dense(model: Network, data: DataConfig) -> nn.Module:
    # Wherever the network is built: pictures have values.
    with torch.device("cpu"):
        sizes = facts(data)
    return build(model, sizes.channels, sizes.classes)


def _bare(model: Network, data: DataConfig) -> nn.Module:
    """The dense network for questions that no weight answers; not to be changed."""
    # A network of a user's may look at its weights when it is built.
    return _undrawn(model, data) if model.model in _OWN else _dense(model, data)


# Questions about one workload come together, and large networks are large.
@lru_cache(maxsize=4)
def _undrawn(model: Network, data: DataConfig) -> nn.Module:
    with undrawn():
        return _dense(model, data)


def _asked(model: Network, data: DataConfig, prunable: tuple[str, ...]) -> nn.Module:
    """The dense network in which units are looked for: ``auto`` tries them on weights."""
    return _dense(model, data) if prunable == AUTO else _bare(model, data)


def _network(model: Network, data: DataConfig, widths: Mapping[str, int]) -> nn.Module:
    dense = _dense(model, data)
    return narrowed(dense, widths, _named(model, data, tuple(widths))) if widths else dense


@lru_cache(maxsize=64)
def _named(model: Network, data: DataConfig, names: tuple[str, ...]) -> tuple[Unit, ...]:
    return tuple(units_named(_bare(model, data), _example(data), names))


def widths_at(workload: Workload, ratio: float) -> dict[str, int]:
    """Channels that each unit keeps at a ratio."""
    return {
        unit.name: unit.channels - unit.removed(workload.ratio_of(unit.name, ratio)) for unit in units(workload).units
    }


@lru_cache(maxsize=512)
def _shape(model: Network, data: DataConfig, widths: tuple[tuple[str, int], ...]) -> Shape:
    """Counting takes a second for a large network: cached by what it depends on, whatever the recipes."""
    with undrawn() if model.model in _OWN else nullcontext():
        built = _network(model, data, dict(widths))
    return Shape(widths, macs(built, _example(data)), macs_by_torch(built, _example(data)), parameters(built))


def shape_of(workload: Workload, widths: dict[str, int]) -> Shape:
    """Size of the network with the given widths (none: dense)."""
    return _shape(workload.network, workload.data, tuple(widths.items()))


def shape_of_weights(workload: Workload, stay: Mapping[str, int], widths: Mapping[str, int] | None = None) -> Shape:
    """Size of the network of some widths (none: dense) with so many weights left in some layers; no zero counts."""
    built = network(workload, dict(widths or {}))
    counts = {name: built.get_parameter(f"{name}.weight").numel() for name in stay}
    full = shape_of(workload, dict(widths or {}))
    # Counted once for the dense network, which most are asked for.
    costs_of = macs_by_layer(built, _example(workload.data)) if widths else costs(workload).macs
    spared = sum(costs_of[name] // count * (count - stay[name]) for name, count in counts.items())
    recounted = macs_by_torch_of_weights(built, _example(workload.data), stay)
    return Shape(full.widths, full.macs - spared, recounted, full.params - sum(counts.values()) + sum(stay.values()))


def shape(workload: Workload, ratio: float | None = None) -> Shape:
    """Size of the dense network (ratio None) or of the one that a layerwise method leaves at a ratio."""
    return shape_of(workload, {} if ratio is None else widths_at(workload, ratio))


def speedup(workload: Workload, ratio: float) -> float:
    """MACs(base) / MACs(pruned) at a ratio."""
    return shape(workload).macs / shape(workload, ratio).macs
