"""Physical removal of filters, and of whatever goes with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruneaudit.errors import MethodError
from pruneaudit.measure.skeleton import asked_once
from pruneaudit.pruning.attention import open_heads
from pruneaudit.pruning.blocks import lose_parts, name_parts, number_caches
from pruneaudit.pruning.graph import loses_inputs as loses_inputs
from pruneaudit.pruning.slicing import channels_of, keep_channels
from pruneaudit.pruning.units import Unit, Wiring, places_left

Kept = Mapping[str, Sequence[int]]


def block_name(model: nn.Module, name: str) -> str | None:
    """Name of the residual block whose branch a layer opens, or None.

    Such a block names the modules of its branch (``branch``), and does without them once they are None. The layer is
    the first of them, or a part of it: of a transformer's block the attention, which its heads are named by. Blocks of
    libraries are told by their parts, and named here.
    """
    parts = name.split(".")
    for count, own in enumerate(parts):
        owner = ".".join(parts[:count])
        module = model.get_submodule(owner)
        name_parts(module)
        branch = getattr(module, "branch", ())
        if isinstance(branch, tuple) and branch and branch[0] == own:
            return owner
    return None


def block_of(model: nn.Module, name: str) -> Any:
    """The residual block whose branch a layer opens, or None."""
    owner = block_name(model, name)
    return None if owner is None else model.get_submodule(owner)


def others(gone: torch.Tensor, channels: int) -> torch.Tensor:
    """Sorted places of so many that do not go."""
    stays = torch.ones(channels, dtype=torch.bool)
    stays[gone] = False
    return stays.nonzero().flatten()


def cut(network: nn.Module, kept: Kept, units: Iterable[Unit]) -> None:
    """Remove channels of units from a network, in place.

    Args:
        network: Loses channels.
        kept: Channels that stay, by name of the unit; all stay of those that are not named.
        units: Its units.

    Raises:
        MethodError: Groups of a convolution or normalisation would not be alike.
    """
    gone = places_left(units, kept)
    # Attention before its layers, which tell it what it was: another unit may name them first.
    for name in sorted({name for name, _ in gone}, key=lambda name: (name.count("."), name)):
        module = network.get_submodule(name)
        left = {
            side: others(gone[name, side], channels_of(module, side)).tolist()
            for side in ("outputs", "inputs")
            if (name, side) in gone
        }
        try:
            keep_channels(module, left.get("outputs"), left.get("inputs"))
        except MethodError as error:
            raise MethodError(f"layer '{name}': {error}") from None


def units_named(model: nn.Module, example: torch.Tensor, names: Sequence[str]) -> list[Unit]:
    """Units of some names.

    Raises:
        MethodError: There is no unit of a name: the layer shares its channels with another one, or cannot lose any.
    """
    if not names:
        return []
    units, refused = asked_once(
        ("units", *names), model, example, lambda network, inputs: Wiring(network, inputs).units(names)
    )
    for name in names:
        if name in refused:
            raise MethodError(f"layer '{name}' cannot be pruned: {refused[name]}")
        if name not in (unit.name for unit in units):
            other = next(unit.name for unit in units for member in unit.members if member.module == name)
            raise MethodError(f"layer '{name}' cannot be pruned alone: it shares its channels with '{other}'")
    return units


def shrink(model: nn.Module, kept: Kept, example: torch.Tensor) -> nn.Module:
    """A copy of a network with only the kept filters, and everything that depends on them sliced alike.

    A layer that opens the branch of a residual block and keeps nothing takes the branch with it.

    Args:
        model: The dense network; not changed.
        kept: For each pruned unit, by name, the sorted indices of the channels that stay.
        example: One input, ``[1, C, H, W]``.

    Returns:
        A new, smaller network.

    Raises:
        MethodError: There is no unit of a name, or its channels cannot be those.
    """
    network = copy.deepcopy(model)
    return without(network, kept, units_named(network, example, _losing(network, kept)))


def without(network: nn.Module, kept: Kept, units: Iterable[Unit]) -> nn.Module:
    """The network itself, with only the kept filters; see :func:`shrink`.

    Args:
        network: The dense network; changed in place.
        kept: For each pruned unit, by name, the sorted indices of the channels that stay.
        units: The units that lose channels, at least.
    """
    blocks = [block for name in kept if not len(kept[name]) and (block := block_of(network, name)) is not None]
    cut(network, {name: kept[name] for name in _losing(network, kept)}, units)
    for block in blocks:
        lose_parts(block)
    if blocks:
        number_caches(network)
    return network


def narrowed(network: nn.Module, widths: Mapping[str, int], units: Iterable[Unit]) -> nn.Module:
    """The network itself, with so many channels of each unit; which ones does not matter, since its weights are to go.

    Args:
        network: The dense network; changed in place.
        widths: Channels that stay, by name of the unit.
        units: Its units of these names.
    """
    found = {unit.name: unit for unit in units}
    return without(network, {name: found[name].first(width) for name, width in widths.items()}, found.values())


def _losing(model: nn.Module, kept: Kept) -> list[str]:
    """Names of units that lose some channels, but for branches that go as a whole."""
    return [
        name
        for name, indices in kept.items()
        if (len(indices) or block_of(model, name) is None)
        and len(indices) < channels_of(model.get_submodule(name), "outputs")
    ]


def masked(model: nn.Module, kept: Kept, example: torch.Tensor) -> nn.Module:
    """A copy of a network with the removed filters silenced but still there: the reference that ``shrink`` must equal.

    Whoever reads the channels that go gets zeros instead, whatever lies between: the shift of a normalisation, say.
    """
    network = copy.deepcopy(model)
    losing = _losing(network, kept)
    silence_inputs(network, {name: kept[name] for name in losing}, units_named(network, example, losing))
    with torch.no_grad():
        for name, indices in kept.items():
            block = block_of(network, name)
            if not len(indices) and block is not None:
                # A branch without filters still carries the shift of its last normalisation; a block of a transformer
                # says which layers write what it adds.
                for end in getattr(block, "ends", block.branch[-1:]):
                    for parameter in block.get_submodule(end).parameters():
                        parameter.zero_()
    return network


def silence_inputs(network: nn.Module, kept: Kept, units: Iterable[Unit]) -> list[RemovableHandle]:
    """Multiply what layers read of the channels that go by zero, from now on.

    Args:
        network: Gets hooks.
        kept: Channels that stay, by name of the unit.
        units: Its units.

    Returns:
        Its hooks, to be taken away again.
    """
    hooks = []
    for (name, side), gone in places_left(units, kept).items():
        module = network.get_submodule(name)
        # A normalisation over all channels reads them, too.
        if side == "inputs" or isinstance(module, nn.RMSNorm):
            # Torch's attention never calls the layer that reads its heads.
            open_heads(network.get_submodule(name.rpartition(".")[0]))
            factors = torch.ones(channels_of(module, side))
            factors[gone] = 0
            hooks.append(module.register_forward_pre_hook(_times(factors)))
    return hooks


def _times(factors: torch.Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def multiply(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        values = inputs[0]
        return (values * shaped(factors.to(values), module), *inputs[1:])

    return multiply


def shaped(values: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """A value for each channel in a shape that goes with what a layer reads or writes, ``[C, 1, 1]`` or ``[C]``."""
    return (
        values if isinstance(module, nn.Linear) else values.view(-1, *[1] * (module.get_parameter("weight").dim() - 2))
    )


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


def zeros_left(
    model: nn.Module, held: Mapping[str, torch.Tensor], kept: Mapping[str, Sequence[int]], example: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Masks of a dense network's weights, cut as its filters are: what stays zero of the network that is left.

    Args:
        model: The dense network; not changed.
        held: For each layer which weights are not zero, bool, in the shape of its weights.
        kept: Filters that stay, by layer.
        example: One input.
    """
    pattern = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in held.items():
            pattern.get_parameter(f"{name}.weight").copy_(mask)
    small = dict(shrink(pattern, kept, example).named_parameters())
    return {name: (small[f"{name}.weight"] != 0).cpu() for name in held if f"{name}.weight" in small}


def widths_to_kept(widths: Mapping[str, int]) -> dict[str, list[int]]:
    """Any filters that give a layer its width: the shape is what counts when weights are drawn anew."""
    return {name: list(range(width)) for name, width in widths.items()}
