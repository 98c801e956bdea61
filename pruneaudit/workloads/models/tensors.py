"""Tensors of networks: what goes into a file of weights, and how a network takes it, with or without weights so far."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def fill(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Let tensors be the parameters of a network: they are not copied, and keep their types.

    Args:
        model: Changed in place; parameters that it shares stay shared.
        tensors: By name, with the shapes of the network's parameters; of those that are shared any name will do.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    made: dict[int, nn.Parameter] = {}
    for name, parameter in named:
        if name in tensors and id(parameter) not in made:
            made[id(parameter)] = nn.Parameter(tensors[name], requires_grad=parameter.requires_grad)
    for name, parameter in named:
        owner, _, own = name.rpartition(".")
        model.get_submodule(owner)._parameters[own] = made[id(parameter)]


def take(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a network the weights of a state (:func:`state_of`); one without weights has these then, and not copies.

    Raises:
        RuntimeError: They are those of another network.
    """
    shared = aliases(model)
    whole = {**tensors, **{name: tensors[first] for name, first in shared.items() if first in tensors}}
    if not any(parameter.is_meta for parameter in model.parameters()):
        model.load_state_dict(whole)
        return
    state = model.state_dict()
    wrong = {
        name for name in state if name not in whole or whole[name].shape != state[name].shape
    } | whole.keys() - state
    if wrong:
        raise RuntimeError(f"tensor '{min(wrong)}' is another one")
    fill(model, {name: tensors[name] for name, _ in model.named_parameters()})
    for name, buffer in model.named_buffers():
        if name in state:
            buffer.copy_(whole[name])


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of a network's state by name; a parameter that it has under several names by the first."""
    shared = aliases(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}


def aliases(network: nn.Module) -> dict[str, str]:
    """Further names of parameters that a network has under several, each with the first one."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if (known := first.setdefault(id(parameter), name)) != name:
            found[name] = known
    return found
