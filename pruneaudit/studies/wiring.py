"""How a pruned network is put together: correctly, or as the released code of the oracle study did.

And the test that tells the two apart whatever they compute: the names of channels mean nothing, so that naming them in
another order must change nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pruneaudit.catalog.studies import Wiring
from pruneaudit.pruning.joint import Mask, Subset
from pruneaudit.pruning.removal import without
from pruneaudit.pruning.units import Unit


def wired(
    base: nn.Module,
    kept: Mapping[str, Subset],
    l1: Mapping[str, Subset],
    units: Sequence[Unit],
    wiring: Wiring,
) -> nn.Module:
    """A pruned network.

    ``correct``: what a network computes when the filters that go put out zero. ``legacy-l1``: what the released code of
    Feng et al. 2024 builds instead. Each layer keeps the filters of its set, but reads the inputs of the L1 set of the
    layer before, and a normalisation behind it stays that of the L1 set: the filter at each place meets weights that
    were trained for another one. Only the L1 set itself is then a pruned network.

    Args:
        base: The dense network, not changed.
        kept: Filters that stay, by layer.
        l1: Filters that the L1 norm keeps, by layer.
        units: The units of these layers in the base.
        wiring: Which of the two.
    """

    def sliced(some: Mapping[str, Subset]) -> nn.Module:
        return without(copy.deepcopy(base), {name: list(subset) for name, subset in some.items()}, units).eval()

    if wiring == "correct":
        return sliced(kept)
    network = sliced(l1)
    for name, subset in kept.items():
        # Its own filters; what it reads and what follows it are as the L1 set left them.
        donor = sliced({**l1, name: subset}).get_submodule(name)
        network.get_submodule(name).load_state_dict(donor.state_dict())
    return network


@torch.no_grad()
def relabel(model: nn.Module, unit: Unit, order: Sequence[int]) -> None:
    """Name the channels of a unit in another order; the network computes what it did.

    Args:
        model: The network; changed in place.
        unit: One of its units: every layer that writes, passes on or reads its channels goes along.
        order: For each new channel, which of the old ones it is; of heads, channels of a head stay together.
    """
    for member in unit.members:
        places, taken = member.places.flatten(), member.places[list(order)].flatten()
        module = model.get_submodule(member.module)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if member.side == "inputs" and tensor.dim() > 1:
                tensor[:, places] = tensor[:, taken].clone()
            elif member.side == "outputs" and tensor.dim():
                tensor[places] = tensor[taken].clone()


def mismatches(mask: Mask, l1: Mask) -> int:
    """Places that another filter takes than in the L1 set: how far ``legacy-l1`` is from a pruned network."""
    return sum(one != other for some, own in zip(mask, l1, strict=True) for one, other in zip(some, own, strict=True))
