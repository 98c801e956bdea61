"""Prunable layers of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import Granularity
from pruneaudit.pruning.equivalence import verified
from pruneaudit.pruning.graph import LAYERS
from pruneaudit.pruning.removal import Kept, block_of, others
from pruneaudit.pruning.slicing import channels_of
from pruneaudit.pruning.units import Unit, Wiring, alone, places_left

#: Instead of patterns: all units that the graph finds and that are cut right.
AUTO = ("auto",)


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
        unit: What it goes with, of which it is one of the producers; a unit of its own where nothing else is coupled.
        readers: Layers that read its channels, by name.
    """

    name: str
    module: Any
    norm: Any
    group: Any = field(default=None, repr=False, compare=False)
    block: Any = field(default=None, repr=False, compare=False)
    unit: Unit | None = field(default=None, repr=False, compare=False)
    readers: Mapping[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)

    @property
    def weight(self) -> torch.Tensor:
        """Weights, ``[out_channels, in_channels / groups, kH, kW]``.

        A transposed convolution stores them the other way round: a view of them where filters are to go. So is that of
        a layer which writes queries, keys and values of attention, ``[channels of heads, 3, in_channels]``.
        """
        weight: torch.Tensor = self._tensor("weight")
        if self._fused:
            return weight.unflatten(0, (self._fused, -1)).transpose(0, 1)
        if self.unit is None or not getattr(self.module, "transposed", False):
            return weight
        # Stored as [in, out / groups, ...].
        grouped = weight.unflatten(0, (self.module.groups, -1)).transpose(1, 2)
        return grouped.flatten(0, 1)

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias ``[out_channels]`` or None; of queries, keys and values ``[channels of heads, 3]``."""
        bias: torch.Tensor | None = self._tensor("bias")
        return bias.unflatten(0, (self._fused, -1)).transpose(0, 1) if self._fused and bias is not None else bias

    @property
    def _fused(self) -> int:
        """How many rows of its weights one channel of the unit that it leads has, where these are several; else 0."""
        own = (each for each in self.unit.members if each.module == self.name) if self.unit is not None else ()
        rows = next((member.places.shape[1] for member in own if member.side == "outputs"), 1)
        return rows if rows > 1 and self.unit is not None and self.unit.name == self.name else 0

    def _tensor(self, name: str) -> Any:
        """Weight or bias; torch's attention has them under names of their own."""
        return getattr(self.module, f"in_proj_{name}" if isinstance(self.module, nn.MultiheadAttention) else name)

    @property
    def channels(self) -> int:
        """Number of filters."""
        return self.weight.shape[0]


def units_of(layers: Sequence[PrunableLayer]) -> list[Unit]:
    """Units of some layers, each once, in module order of their first layers."""
    found = {layer.unit.name: layer.unit for layer in layers if layer.unit is not None}
    return [found.get(layer.name) or alone(layer.name, layer.channels) for layer in layers if _leads(layer)]


def _leads(layer: PrunableLayer) -> bool:
    return layer.unit is None or layer.unit.name == layer.name


def inputs_left(layers: Sequence[PrunableLayer], kept: Kept) -> dict[nn.Module, torch.Tensor]:
    """Input channels that stay of each layer that loses some when the layers keep only ``kept``.

    Args:
        layers: The prunable layers of one network, with their units.
        kept: Filters that stay, by unit.

    Returns:
        Sorted indices ``[inputs that stay]`` by module; modules that lose none are left out.
    """
    modules = {name: module for layer in layers for name, module in layer.readers.items()}
    return {
        modules[name]: others(gone, channels_of(modules[name], "inputs"))
        for (name, side), gone in places_left(units_of(layers), kept).items()
        if side == "inputs"
    }


def prunable_names(model: nn.Module, patterns: tuple[str, ...], skip: tuple[str, ...] = ()) -> list[str]:
    """Names of the layers that the patterns select, in module order.

    Raises:
        ConfigError: A pattern selects nothing.
    """
    candidates = [
        name for name, module in model.named_modules() if isinstance(module, (*LAYERS, nn.MultiheadAttention))
    ]
    if patterns == AUTO:
        patterns = ("*",)
    for pattern in (*patterns, *skip):
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ConfigError(f"prunable pattern '{pattern}' matches no layer; layers: {', '.join(candidates)}")
    return [
        name
        for name in candidates
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and not any(fnmatchcase(name, pattern) for pattern in skip)
    ]


def prunable_units(
    model: nn.Module, wiring: Wiring, example: torch.Tensor, patterns: tuple[str, ...], skip: tuple[str, ...] = ()
) -> tuple[list[Unit], dict[str, str]]:
    """Units that the patterns select, by any layer that writes their channels.

    With ``auto`` instead of patterns: all units of which removing computes what silencing computes, but for those that
    a normalisation computes over: the residual width is a part of every block, and goes where it is named.

    Args:
        model: The network.
        wiring: Its wiring.
        example: One input, ``[1, C, H, W]``.
        patterns: Shell-style patterns of module names, or :data:`AUTO`.
        skip: Patterns taken out again: units that they match, by any layer that writes their channels, stay whole.

    Returns:
        The units, and why other layers cannot lose filters, by name (``auto`` only).

    Raises:
        ConfigError: A pattern selects nothing, or a layer that cannot lose filters.
    """
    units, refused = wiring.units(prunable_names(model, patterns, skip))
    units = [unit for unit in units if not any(fnmatchcase(name, each) for name in unit.producers for each in skip)]
    if patterns == AUTO:
        apart = {unit.name: "a normalisation computes over its channels; name it" for unit in units if unit.normalised}
        units, wrong = verified(model, [unit for unit in units if not unit.normalised], example)
        wrong |= apart
        if not units:
            reasons = "; ".join(f"'{name}': {why}" for name, why in (refused | wrong).items())
            raise ConfigError(f'prunable = "auto" finds no unit that can be removed ({reasons})')
        return units, refused | wrong
    for name, why in refused.items():
        raise ConfigError(f"prunable: layer '{name}' cannot lose filters: {why}; name other layers, or add it to skip")
    return units, {}


def weight_names(model: nn.Module, last: bool = False) -> list[str]:
    """Names of the layers that may lose single weights: all convolutions and linear layers but the classifier.

    The choice of ShrinkBench (Blalock et al. 2020); patterns of prunable filters are about wiring and do not count.

    Args:
        model: The network.
        last: Whether to name the classifier, too.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    return names if last else names[:-1]


def prunable_layers(
    model: nn.Module,
    example: torch.Tensor,
    patterns: tuple[str, ...],
    skip: tuple[str, ...] = (),
    granularity: Granularity = "filter",
) -> list[PrunableLayer]:
    """The layers that the patterns select, each with what its channels pass; in module order, but for those that lead.

    Args:
        model: The dense network.
        example: One input, ``[1, C, H, W]``.
        patterns: Shell-style patterns of module names.
        skip: Patterns taken out again.
        granularity: What is to be removed: ``weight`` selects other layers, ``block`` those that open a branch.

    Raises:
        ConfigError: A pattern selects nothing.
    """
    wiring = Wiring(model, example)
    if granularity == "weight":
        return [
            PrunableLayer(name, wiring.modules[name], wiring.norm(name), block=block_of(model, name))
            for name in weight_names(model)
        ]
    units, _ = prunable_units(model, wiring, example, patterns, skip)
    owners = {name: unit for unit in units for name in unit.producers}
    # The layer that leads a unit comes first of its layers: it decides, layer by layer. Keys lead queries that they are
    # fewer than, and stand behind them.
    order = dict.fromkeys(each for name in wiring.modules if name in owners for each in (owners[name].name, name))
    layers = [
        PrunableLayer(
            name,
            wiring.modules[name],
            wiring.norm(name),
            wiring.group(name),
            None if owners[name].normalised else block_of(model, name),
            owners[name],
            wiring.readers(owners[name]),
        )
        for name in order
    ]
    return [layer for layer in layers if granularity != "block" or (layer.block is not None and _leads(layer))]
