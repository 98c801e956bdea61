"""What arrives at the layers that read a unit's channels: in forward passes, and as gradients of a loss.

Heads and hidden neurons of transformers have no layer of their own whose outputs tell what they do: queries alone do
nothing. What leaves them does, and that is what ``o_proj``, ``down_proj`` and their like read, channel by channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.errors import MethodError
from pruneaudit.pruning.attention import joined_name, open_heads
from pruneaudit.pruning.units import Unit

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Arrivals:
    """Moments of each input channel of a layer over all examples, tokens and pixels, in float64.

    Attributes:
        squares: Mean of the squares, ``[in]``.
        variance: Sample variance, ``[in]``.
    """

    squares: torch.Tensor
    variance: torch.Tensor


def consumer_names(units: Iterable[Unit]) -> list[str]:
    """Names of the layers that read channels of some units, each once."""
    return list(dict.fromkeys(member.module for unit in units for member in unit.members if member.side == "inputs"))


def of_channels(unit: Unit, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum over all that reads a channel of a unit, ``[..., channels]``.

    Args:
        unit: The unit.
        values: A value for each input of each layer that reads it, ``[..., in]``, by name.
    """
    found = [values[each.module][..., each.places].sum(dim=-1) for each in unit.members if each.side == "inputs"]
    return torch.stack(found).sum(dim=0)


def weights_of_channels(unit: Unit, model: nn.Module, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum over all parameters that go with a channel of a unit, ``[channels]`` in float64.

    Args:
        unit: The unit.
        model: The network.
        values: A number for each value of its parameters, in their shapes, by name.

    Raises:
        MethodError: A layer reads or writes the channels in groups.
    """
    found = torch.zeros(unit.channels, dtype=torch.float64)
    for member in unit.members:
        module: Any = model.get_submodule(member.module)
        reads = member.side == "inputs"
        if reads:
            _reader(model, member.module)
        for name, parameter in module.named_parameters(recurse=False):
            value = values.get(joined_name(member.module, name))
            if value is None or (reads and parameter.dim() < 2):
                # What a reader adds to its outputs does not go with its inputs.
                continue
            # A transposed convolution stores inputs first, an embedding what it is asked for.
            is_stored_turned = bool(getattr(module, "transposed", False)) or isinstance(module, nn.Embedding)
            is_turned = parameter.dim() > 1 and reads != is_stored_turned
            rows = (value.transpose(0, 1) if is_turned else value).double()
            sums = rows.reshape(len(rows), -1).sum(dim=1).cpu()
            found += sums[member.places].sum(dim=1)
    return found


def column_norms(model: nn.Module, names: Iterable[str], power: int) -> dict[str, torch.Tensor]:
    """Sum over a layer's outputs of |w| to a power, for each of its inputs, ``[in]`` in float64, by name."""
    weights = {name: _reader(model, name).weight.detach().double().abs().pow(power) for name in names}
    return {name: weight.transpose(0, 1).flatten(1).sum(dim=1).cpu() for name, weight in weights.items()}


@torch.no_grad()
def arrivals(model: nn.Module, names: Sequence[str], batches: Batches) -> dict[str, Arrivals]:
    """What arrives at some layers, by name.

    Args:
        model: The network, in evaluation mode.
        names: Convolutions or linear layers.
        batches: Inputs and labels, which are not looked at.

    Raises:
        MethodError: A layer reads in groups, or is never called.
    """
    counts = dict.fromkeys(names, 0)
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def note(name: str, values: torch.Tensor) -> torch.Tensor:
        rows = values.flatten(0, -2).double()
        counts[name] += len(rows)
        sums[name].append(torch.stack((rows.sum(dim=0), rows.square().sum(dim=0))).cpu())
        return values

    with _heard(model, names, note):
        for inputs, _ in batches:
            model(inputs)
    found = {}
    for name, parts in sums.items():
        if not parts:
            raise MethodError(f"layer '{name}' is never called: what arrives at it is not known")
        total, squares = torch.stack(parts).sum(dim=0)
        count = counts[name]
        # Rounding may leave a channel that is constant a little below zero.
        around = (squares - total.square() / count).clamp_min(0) / max(1, count - 1)
        found[name] = Arrivals(squares / count, around)
    return found


@torch.no_grad()
def gram(model: nn.Module, name: str, batches: Batches) -> torch.Tensor:
    """Sums of products of all pairs of inputs of a layer, over all examples, tokens and places, in float64.

    Args:
        model: The network, in evaluation mode.
        name: A convolution or linear layer; its inputs are the columns of its weights as a matrix.
        batches: Inputs and labels, which are not looked at.

    Returns:
        ``[in · taps, in · taps]``.

    Raises:
        MethodError: The layer reads in groups, pads with other values than zeros, or is never called.
    """
    module = _reader(model, name)
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str) or getattr(module, "padding_mode", "zeros") != "zeros":
        raise MethodError(f"layer '{name}' pads by a name, or with other values than zeros; this method takes no such")
    sums: list[torch.Tensor] = []

    def note(_name: str, values: torch.Tensor) -> torch.Tensor:
        read = values
        if isinstance(module, nn.Conv2d):
            size, dilation, stride = module.kernel_size, module.dilation, module.stride
            read = F.unfold(values.movedim(-1, 1), size, dilation, padding, stride).transpose(1, 2)
        rows = read.flatten(0, -2).double()
        sums.append((rows.T @ rows).cpu())
        return values

    with _heard(model, [name], note):
        for inputs, _ in batches:
            model(inputs)
    if not sums:
        raise MethodError(f"layer '{name}' is never called: what arrives at it is not known")
    return torch.stack(sums).sum(dim=0)


def gate_gradients(model: nn.Module, units: Sequence[Unit], batches: Batches) -> dict[str, torch.Tensor]:
    """How much a gate on each channel would change an example's loss, to first order, example by example.

    A gate multiplies what is read of a channel; neighbours that go together (a head) have one gate. At 1 its derivative
    is the sum of activation times gradient, over the channels and over the example's tokens (pixels).

    Args:
        model: The network, in evaluation mode; its parameters get no gradients.
        units: Its units.
        batches: Inputs and labels.

    Returns:
        Mean over the examples of the absolute derivative, ``[channels]`` in float64, by unit: the same for neighbours.

    Raises:
        MethodError: A layer reads in groups.
    """
    names = consumer_names(units)
    found: dict[str, list[torch.Tensor]] = {unit.name: [] for unit in units}
    for inputs, labels in batches:
        read: dict[str, torch.Tensor] = {}

        def note(name: str, values: torch.Tensor, read: dict[str, torch.Tensor] = read) -> torch.Tensor:
            read[name] = values if values.requires_grad else values.detach().requires_grad_()
            return read[name]

        with _heard(model, names, note), torch.enable_grad():
            # The sum of the examples' losses, so that none depends on how many came with it.
            loss = F.cross_entropy(model(inputs), labels) * len(inputs)
            gradients = torch.autograd.grad(loss, [read[name] for name in names])
        products = {
            name: (read[name] * gradient).detach().double().flatten(1, -2).sum(dim=1).cpu()
            for name, gradient in zip(names, gradients, strict=True)
        }
        for unit in units:
            gates = of_channels(unit, products).unflatten(1, (-1, unit.bundle)).sum(dim=2).abs()
            found[unit.name].append(gates.repeat_interleave(unit.bundle, dim=1))
    return {name: torch.cat(parts).mean(dim=0) for name, parts in found.items()}


def _reader(model: nn.Module, name: str) -> Any:
    """A layer whose inputs are channels, one by one.

    Raises:
        MethodError: It reads them in groups.
    """
    module: Any = model.get_submodule(name)
    if getattr(module, "groups", 1) > 1 or not isinstance(module, nn.Conv2d | nn.Linear):
        raise MethodError(f"layer '{name}' does not read its inputs one by one; this method takes no such network")
    return module


@contextmanager
def _heard(model: nn.Module, names: Iterable[str], note: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Pass on what each layer reads, ``[N, ..., in]``, to a function that may exchange it."""

    def listen(name: str) -> torch.utils.hooks.RemovableHandle:
        module = _reader(model, name)
        # Torch's attention never calls the layer that reads its heads.
        open_heads(model.get_submodule(name.rpartition(".")[0]))

        def hear(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            if isinstance(module, nn.Linear):
                # A vector for each example is one of one token.
                single = inputs[0].dim() == 2
                heard = note(name, inputs[0].unsqueeze(1) if single else inputs[0])
                return (heard.squeeze(1) if single else heard, *inputs[1:])
            return (note(name, inputs[0].movedim(1, -1)).movedim(-1, 1), *inputs[1:])

        return module.register_forward_pre_hook(hear)

    handles = [listen(name) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
