"""Whether removing channels computes what silencing them computes: every unit is tried before anything is pruned."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from pruneaudit.errors import one_line
from pruneaudit.pruning.removal import cut, shaped, silence_inputs
from pruneaudit.pruning.slicing import channels_of
from pruneaudit.pruning.units import Unit
from pruneaudit.streams import generator

#: Largest difference of the outputs in float64, relative to their scale.
TOLERANCE = 1e-10
#: Images that the networks are compared on.
_IMAGES = 2


@torch.no_grad()
def trained_like(model: nn.Module, draw: torch.Generator) -> None:
    """Draw every weight anew, as training might leave it: no shift is 0, no scale 1, no branch silent.

    Args:
        model: Changed in place.
        draw: Where the values come from, on the CPU.
    """
    statistics = (
        (name, each) for name, each in model.named_buffers() if name.endswith(("running_mean", "running_var"))
    )
    for _, tensor in (*model.named_parameters(), *statistics):
        values = torch.empty(tensor.shape, dtype=torch.float64)
        if tensor.dim() > 1:
            values.normal_(std=(2 * len(tensor) / tensor.numel()) ** 0.5, generator=draw)
        else:
            values.uniform_(0.5, 1.5, generator=draw)
        tensor.copy_(values)


@torch.no_grad()
def difference(model: nn.Module, units: Sequence[Unit], example: torch.Tensor) -> str:
    """How a network without some channels of every unit differs from one in which they are silent, or nothing.

    In the reference whoever reads the channels gets zeros, and layers that write them write noise. Where the outputs
    depend on this noise, the channels reach somewhere else, too.

    Args:
        model: The network, in float64 and eval mode; not changed.
        units: Its units.
        example: One input.
    """
    draw = generator(0, "units")
    kept = {unit.name: _half(unit, draw) for unit in units}
    images = example.expand(_IMAGES, *example.shape[1:])
    if images.is_floating_point():
        images = torch.randn(images.shape, dtype=torch.float64, generator=draw).to(example.device)
    else:
        # Of equal tokens attention is a mean, whatever queries and keys are.
        words = min((each.num_embeddings for each in model.modules() if isinstance(each, nn.Embedding)), default=1)
        images = torch.randint(words, images.shape, generator=draw).to(images)
    try:
        first, second = (_silenced(model, units, kept, draw)(images) for _ in range(2))
        small = copy.deepcopy(model)
        cut(small, kept, units)
        outputs = small(images)
    except Exception as error:
        return f"without some of them the network fails ({one_line(error)})"
    scale = first.abs().max().clamp_min(1e-300)
    if not float((first - second).abs().max() / scale) <= TOLERANCE:
        return "its channels reach more than the layers that would lose inputs"
    if outputs.shape != first.shape:
        return "without some of them the network has other outputs"
    apart = float((outputs - first).abs().max() / scale)
    return (
        "" if apart <= TOLERANCE else f"removing channels is not what silencing them is (outputs differ by {apart:.1e})"
    )


def _half(unit: Unit, draw: torch.Generator) -> list[int]:
    """Half of a unit's channels, at random."""
    _, channels = unit.candidates(torch.rand(unit.channels, generator=draw))
    order = torch.randperm(len(channels), generator=draw)
    found: list[int] = channels[order[: len(channels) // 2]].flatten().sort().values.tolist()
    return found


def _silenced(model: nn.Module, units: Sequence[Unit], kept: dict[str, list[int]], draw: torch.Generator) -> nn.Module:
    """A copy whose readers see zeros where its writers write noise."""
    network = copy.deepcopy(model)
    for unit in units:
        stays = torch.zeros(unit.channels, dtype=torch.bool)
        stays[kept[unit.name]] = True
        for member in unit.members:
            if member.module in unit.producers and member.side == "outputs":
                module = network.get_submodule(member.module)
                noise = torch.zeros(channels_of(module, "outputs"), dtype=torch.float64)
                gone = member.places[~stays].flatten()
                noise[gone] = torch.randn(len(gone), dtype=torch.float64, generator=draw)
                if isinstance(module, nn.MultiheadAttention):
                    # Its layers of queries, keys and values are no modules.
                    shift = (
                        noise if module.in_proj_bias is None else module.in_proj_bias + noise.to(module.in_proj_bias)
                    )
                    module.in_proj_bias = nn.Parameter(shift)
                    continue
                module.register_forward_hook(
                    lambda each, _, outputs, added=noise: outputs + shaped(added.to(outputs), each)
                )
    silence_inputs(network, kept, units)
    return network


def verified(model: nn.Module, units: Sequence[Unit], example: torch.Tensor) -> tuple[list[Unit], dict[str, str]]:
    """Units of a network that can be removed, tried on a copy with weights as after training.

    Args:
        model: The network; not changed.
        units: Its units.
        example: One input, ``[1, C, H, W]``.

    Returns:
        Units that passed all together, and what is wrong with the others, by name.
    """
    network = copy.deepcopy(model).double().eval()
    for module in network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    trained_like(network, generator(0, "trained-like"))
    inputs = example.double() if example.is_floating_point() else example
    inputs = inputs.to(next(network.parameters()).device)
    if not difference(network, units, inputs):
        return list(units), {}
    passed: list[Unit] = []
    refused: dict[str, str] = {}
    for unit in units:
        # With those before it: what passes has passed together.
        problem = difference(network, [*passed, unit], inputs)
        if problem:
            refused[unit.name] = problem
        else:
            passed.append(unit)
    return passed, refused
