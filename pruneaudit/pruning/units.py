"""Units: what is removed as one. All channels of a network that must go together, found with torch-pruning's graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pruneaudit.pruning.attention import Attention, attentions, joined_name
from pruneaudit.pruning.graph import (
    LAYERS,
    NotFollowedError,
    coupled_layers,
    dependency_graph,
    group_of,
    is_depthwise,
    loses_inputs,
    norm_in,
    width_of,
)
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.pruning.slicing import channels_of

Side = Literal["outputs", "inputs"]

#: Modules that pass every channel on by itself.
_PASSING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.PReLU,
    nn.Embedding,
)


@dataclass(frozen=True, eq=False)
class Member:
    """A module that loses channels with a unit.

    Attributes:
        module: Its name.
        side: Whether outputs go (a layer that writes the channels, and whatever passes them on: normalisations,
            depthwise convolutions), or inputs (a layer that reads them).
        places: Its channels that belong to each of the unit's, ``[channels, places]``: one on the same place, or
            elsewhere behind a concatenation, or many behind a flattened map.
    """

    module: str
    side: Side
    places: torch.Tensor


@dataclass(frozen=True, eq=False)
class Unit:
    """Channels of a network that go together: index i of a unit is a channel of each of its members.

    Attributes:
        name: Name of the first layer that writes the channels.
        channels: How many there are: filters of that layer.
        producers: Layers that write them, in module order.
        members: Everything that loses channels.
        bundle: So many neighbours go or stay together: a group of a group normalisation stays whole, or its
            statistics would be others.
        parts: Of so many equal parts each loses the same number: the groups of grouped convolutions stay alike.
        normalised: A normalisation computes over all of them (the residual width of a decoder): one that loses channels
            is scaled, and gives what it gave where they are zero.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    members: tuple[Member, ...]
    bundle: int = 1
    parts: int = 1
    normalised: bool = False

    @property
    def step(self) -> int:
        """Channels are removed in multiples of this number."""
        return self.bundle * self.parts

    def removed(self, ratio: float) -> int:
        """Channels to remove at a ratio."""
        return removed_filters(self.channels // self.step, ratio) * self.step

    def first(self, width: int) -> list[int]:
        """Channels that give it a width, the first of each part: the shape is what counts for fresh weights."""
        length = self.channels // self.parts
        return [start + place for start in range(0, self.channels, length) for place in range(width // self.parts)]

    def candidates(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What can be removed, one after the other.

        Args:
            scores: Of each channel, ``[channels]``.

        Returns:
            Scores ``[candidates]``, and the channels that go with each, ``[candidates, step]``. Where several go at
            once the score is their mean: of neighbours, and of the channels that have the same rank in their parts.
        """
        channels = torch.arange(self.channels).view(-1, 1)
        if self.step == 1:
            return scores, channels
        means = scores.view(self.parts, -1, self.bundle).mean(dim=2)
        ranked, order = torch.sort(means, dim=1, stable=True) if self.parts > 1 else (means, None)
        bundles = channels.view(self.parts, -1, self.bundle)
        if order is not None:
            bundles = bundles.gather(1, order[:, :, None].expand_as(bundles))
        return ranked.mean(dim=0), bundles.transpose(0, 1).reshape(-1, self.step)

    def problem(self, kept: Sequence[int]) -> str:
        """Why some channels cannot be what stays, or nothing."""
        stays = torch.zeros(self.channels, dtype=torch.bool)
        stays[list(kept)] = True
        bundles = stays.view(-1, self.bundle)
        if bool((bundles.any(dim=1) != bundles.all(dim=1)).any()):
            return f"of {self.bundle} neighbours, a group of a normalisation, all stay or none"
        if len(set(stays.view(self.parts, -1).sum(dim=1).tolist())) > 1:
            return f"of {self.parts} groups of a convolution each keeps the same number"
        return ""


def joined(unit: Unit, readers: Mapping[str, nn.Module]) -> str:
    """How a unit is more than a layer that is read by others through plain weights, or nothing.

    Args:
        unit: The unit.
        readers: Layers that read its channels, by name; others may be among them.
    """
    if len(unit.producers) > 1:
        other = next(name for name in unit.producers if name != unit.name)
        return f"layer '{unit.name}' goes together with '{other}'"
    for member in unit.members:
        module = readers.get(member.module) if member.side == "inputs" else None
        if module is not None and (
            getattr(module, "groups", 1) > 1
            or not isinstance(module, nn.Conv2d | nn.Linear)
            or member.places.numel() != channels_of(module, "inputs")
        ):
            return f"layer '{unit.name}' is read by '{member.module}', in groups or with other channels beside it"
    return ""


def alone(name: str, channels: int) -> Unit:
    """A layer as a unit, whatever depends on it."""
    return Unit(name, channels, (name,), ())


def places_left(units: Iterable[Unit], kept: Mapping[str, Sequence[int]]) -> dict[tuple[str, Side], torch.Tensor]:
    """Channels that each module loses when units keep some.

    Args:
        units: Units of one network.
        kept: Channels that stay, by name of the unit; all stay of those that are not named.

    Returns:
        Sorted places that go, by name of the module and side; sides that lose nothing are left out.
    """
    gone: dict[tuple[str, Side], list[torch.Tensor]] = {}
    for unit in units:
        stays = torch.zeros(unit.channels, dtype=torch.bool)
        stays[list(kept.get(unit.name, range(unit.channels)))] = True
        if bool(stays.all()):
            continue
        for member in unit.members:
            gone.setdefault((member.module, member.side), []).append(member.places[~stays].flatten())
    return {place: torch.cat(found).unique() for place, found in gone.items()}


class Wiring:
    """Which channels of a network go together.

    Args:
        model: The network; not changed.
        example: One input, ``[1, C, H, W]``.
    """

    def __init__(self, model: nn.Module, example: torch.Tensor) -> None:
        self.modules = dict(model.named_modules())
        self._names = {module: name for name, module in self.modules.items()}
        self._parameters = {parameter: name for name, parameter in model.named_parameters()}
        self._heads = {
            writer: unit
            for name, (attention, reader) in attentions(model).items()
            for unit in [_heads_unit(name, attention, reader)]
            for writer in unit.producers
        }
        self._graph = dependency_graph(model, example)
        self._groups: dict[str, Any] = {}

    def group(self, name: str) -> Any:
        """Torch-pruning's group of everything that loses channels with a layer, over all of its filters.

        Of layers of attention it is made here: the search may never end.
        """
        if name not in self._groups:
            self._groups[name] = (
                self._group_of_heads(name) if name in self._heads else group_of(self._graph, self.modules[name])
            )
        return self._groups[name]

    def _group_of_heads(self, name: str) -> Any:
        """The group of a layer of attention: the layer, others with as many channels, and what reads them."""
        unit = self._heads[name]
        own = next(each for each in unit.members if each.module == name)
        if name == unit.name and own.places.shape[1] > 1:
            return coupled_layers(name, [])
        channels = torch.arange(own.places.numel())
        found = [(self.modules[name], "outputs", channels, channels)]
        for other in unit.members:
            module, places = self.modules[other.module], other.places
            if other is own or not isinstance(module, nn.Linear):
                continue
            if places.numel() == len(channels):
                found.append((module, other.side, places.flatten()[own.places.flatten().argsort()], channels))
            elif own.places.shape[1] == 1:
                found.append((module, other.side, places.flatten(), channels.repeat_interleave(places.shape[1])))
        return coupled_layers(name, found)

    def norm(self, name: str) -> nn.modules.batchnorm._BatchNorm | None:
        """The batch normalisation that loses channels together with a layer, one for each filter, or None."""
        module = self.modules[name]
        if name in self._heads or module not in self._graph.module2node:
            return None
        try:
            return norm_in(self.group(name), width_of(module))
        except NotFollowedError:
            return None

    def readers(self, unit: Unit) -> dict[str, nn.Module]:
        """Layers that read the channels of a unit, by name."""
        return {each.module: self.modules[each.module] for each in unit.members if each.side == "inputs"}

    def units(self, names: Iterable[str]) -> tuple[list[Unit], dict[str, str]]:
        """Units that some layers write to.

        Args:
            names: Of the layers.

        Returns:
            Units in module order, and why the other layers cannot lose filters, by name.
        """
        order = {name: place for place, name in enumerate(self.modules)}
        refused: dict[str, str] = {}
        writers = set[str]()
        for name in names:
            if name in self._heads:
                writers.add(self._heads[name].name)
                continue
            if isinstance(self.modules.get(name.rpartition(".")[0]), nn.MultiheadAttention):
                refused[name] = "it is a part of torch's attention, whose heads go as a whole"
                continue
            if self.modules[name] not in self._graph.module2node:
                refused[name] = "the network does not use it"
                continue
            try:
                written_by = self._writers(name)
            except NotFollowedError as error:
                refused[name] = str(error)
                continue
            if not written_by:
                refused[name] = "it passes on channels that no layer writes"
            writers.update(written_by)
        units: list[Unit] = []
        covered = set[str]()
        for name in sorted(writers, key=order.__getitem__):
            if name in covered:
                continue
            found = self._unit(name, order)
            if isinstance(found, str):
                refused[name] = found
                continue
            units.append(found)
            covered.update(member.module for member in found.members if member.side == "outputs")
        return units, {name: why for name, why in refused.items() if name not in covered}

    def _writers(self, name: str) -> list[str]:
        """Layers that write the channels that a layer writes or passes on."""
        found = []
        for item in self.group(name):
            module = item.dep.target.module
            if isinstance(module, LAYERS) and not loses_inputs(item.dep) and not is_depthwise(module):
                found.append(self._names[module])
        return found

    def _unit(self, name: str, order: Mapping[str, int]) -> Unit | str:
        """The unit of all filters of a layer, or why there is none."""
        if name in self._heads:
            heads = self._heads[name]
            return heads if heads.channels > heads.step else "it has one group of heads, which cannot go"
        channels = width_of(self.modules[name])
        members: list[Member] = []
        for item in self.group(name):
            module = item.dep.target.module
            if isinstance(module, nn.Parameter):
                own = self._parameters.get(module, "?")
                module = self.modules.get(own.rpartition(".")[0])
                if not isinstance(module, nn.RMSNorm):
                    return f"its channels meet the parameter '{own}', which is no layer's"
            if type(module).__name__ == "_OutputOp":
                return _CLASSIFIER
            if module not in self._names:
                continue  # An operation without weights: a sum, a concatenation.
            who = f"{type(module).__name__} '{self._names[module]}'"
            if not isinstance(module, (*LAYERS, *_PASSING, nn.RMSNorm)):
                kind = "computes over its channels" if isinstance(module, nn.LayerNorm) else "cannot lose channels"
                return f"{who} {kind}"
            if isinstance(module, nn.PReLU) and module.num_parameters == 1:
                continue
            places = _table(channels, item.root_idxs, item.idxs)
            side: Side = "inputs" if loses_inputs(item.dep) else "outputs"
            if places is None or not 0 <= int(places.min()) <= int(places.max()) < channels_of(module, side):
                return f"not every one of its channels reaches {who} alike"
            members.append(Member(self._names[module], side, places))
        if not any(member.side == "inputs" for member in members):
            return _CLASSIFIER
        bundle = parts = 1
        normalised = False
        tensors: dict[nn.Parameter, str] = {}
        for member in members:
            module = self.modules[member.module]
            who = f"{type(module).__name__} '{member.module}'"
            other = tensors.setdefault(module.weight, member.module) if module.weight is not None else member.module
            if other != member.module:
                return f"{who} and '{other}' share their weights, and would no longer"
            if isinstance(module, nn.RMSNorm):
                if tuple(module.normalized_shape) != (channels,) or member.places.shape[1] > 1:
                    return f"{who} computes over other channels, too"
                normalised = True
            if isinstance(module, nn.GroupNorm):
                size = module.num_channels // module.num_groups
                if not _is_whole(member.places, size):
                    return f"{who} has groups that are only partly its channels"
                bundle = math.lcm(bundle, max(1, size // member.places.shape[1]))
            elif isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and not is_depthwise(module):
                width = module.in_channels if member.side == "inputs" else module.out_channels
                if not torch.equal(member.places.flatten(), torch.arange(width)):
                    return f"{who} has groups, and not only its channels"
                parts = math.lcm(parts, module.groups)
        if channels % parts or (channels // parts) % bundle or channels // (bundle * parts) < 2:
            return "its channels form one group, of which none can go"
        producers = [
            member.module
            for member in members
            if member.side == "outputs"
            and isinstance(self.modules[member.module], LAYERS)
            and not is_depthwise(self.modules[member.module])
        ]
        return Unit(
            name, channels, tuple(sorted(producers, key=order.__getitem__)), tuple(members), bundle, parts, normalised
        )


def _heads_unit(name: str, attention: Attention, reader: str) -> Unit:
    """The heads of attention: a channel of the keys, with that of the values and those of its queries.

    Args:
        name: Module of the attention.
        attention: Its sizes.
        reader: Layer that reads the heads.
    """
    *written, read = attention.places()
    writers = tuple(joined_name(name, each) for each in attention.writers) or (name,)
    keys = torch.arange(attention.channels)[:, None]
    members = [Member(module, "outputs", places) for module, places in zip(writers, written, strict=True)]
    if attention.writers:
        # First: it looks at its layers for what it was.
        members.insert(0, Member(name, "outputs", keys))
    members.append(Member(reader, "inputs", read))
    lead = joined_name(name, attention.lead)
    return Unit(lead, attention.channels, writers, tuple(members), bundle=attention.width)


#: Why the last layer keeps its filters.
_CLASSIFIER = "it is the classifier: its outputs are the network's"


def _table(channels: int, roots: Sequence[Any], places: Sequence[int]) -> torch.Tensor | None:
    """Places of each channel, ``[channels, places]``; None where channels do not have equally many of their own."""
    if any(root is None for root in roots) or len(places) % channels or len(set(places)) < len(places):
        return None
    pairs = sorted(zip(roots, places, strict=True))
    found = torch.tensor([place for _, place in pairs]).view(channels, -1)
    owners = torch.tensor([root for root, _ in pairs]).view(channels, -1)
    return found if bool((owners == torch.arange(channels)[:, None]).all()) else None


def _is_whole(places: torch.Tensor, size: int) -> bool:
    """Whether channels lie in whole groups of a normalisation, one behind the other."""
    flat = places.flatten()
    start = int(flat[0])
    return start % size == 0 and len(flat) % size == 0 and torch.equal(flat, torch.arange(start, start + len(flat)))
