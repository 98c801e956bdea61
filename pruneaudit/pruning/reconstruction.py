"""What a layer passes to the next one, measured on images: for methods that keep the next layer's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.errors import MethodError
from pruneaudit.pruning.graph import loses_inputs
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.units import joined


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that loses inputs when another layer loses filters.

    Attributes:
        module: The convolution (without dilation or groups) or linear layer.
        filters: Of which filter of the other layer each input is the output, ``[inputs]``.
    """

    module: nn.Conv2d | nn.Linear
    filters: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """Weights of one input, ``[out_channels, inputs, taps]``, as doubles."""
        weight = self.module.weight.detach().double()
        return weight.reshape(*weight.shape[:2], -1)

    def inputs_of(self, kept: Sequence[int]) -> torch.Tensor:
        """Inputs that stay when only ``kept`` filters do."""
        return torch.isin(self.filters, torch.as_tensor(kept)).nonzero().flatten()


def consumers(layer: PrunableLayer) -> list[Consumer]:
    """The layers that read a layer's outputs.

    Raises:
        MethodError: Its outputs go together with those of other layers, or are read behind a concatenation or in
            groups: what a filter passes to the next layer is then more than the weights that read it.
    """
    _see_alone(layer)
    found = []
    for item in layer.group:
        if loses_inputs(item.dep):
            # Behind a flattened map a filter has many inputs: the group says which.
            filters = torch.empty(len(item.idxs), dtype=torch.int64)
            filters[torch.tensor(list(item.idxs))] = torch.tensor(list(item.root_idxs))
            found.append(Consumer(item.dep.target.module, filters))
    return found


def _see_alone(layer: PrunableLayer) -> None:
    """See that a layer's filters go alone, and whoever reads them reads nothing else.

    Raises:
        MethodError: They do not.
    """
    problem = "" if layer.unit is None else joined(layer.unit, layer.readers)
    if problem:
        raise MethodError(f"{problem}: this method takes layers that lose filters alone and are read alone")


def samples(
    model: nn.Module,
    module: nn.Conv2d | nn.Linear,
    batches: Sequence[torch.Tensor],
    positions: int,
    draw: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer computes at random positions of its output: windows of its input, and outputs.

    Args:
        model: The network that it is part of; evaluated without gradients.
        module: The layer.
        batches: Images, ``[B, C, H, W]`` each.
        positions: Positions of each image, all different; all of them where there are fewer.
        draw: Chooses them, whatever the layer's width.

    Returns:
        ``[S, inputs, taps]`` and ``[S, out_channels]``, as doubles.
    """
    found = []

    def note(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.append(_at_random(module, inputs[0], output, positions, draw))

    handle = module.register_forward_hook(note)
    try:
        with torch.no_grad():
            for images in batches:
                model(images)
    finally:
        handle.remove()
    windows = torch.cat([first for first, _ in found])
    outputs = torch.cat([second for _, second in found])
    return windows.double(), outputs.double()


def _at_random(
    module: nn.Conv2d | nn.Linear, maps: torch.Tensor, output: torch.Tensor, positions: int, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows and outputs of one batch."""
    if isinstance(module, nn.Linear):
        return maps.unsqueeze(2), output
    height, width = module.kernel_size
    vertical, horizontal = map(int, module.padding)
    padded = F.pad(maps, (horizontal, horizontal, vertical, vertical))
    windows = padded.unfold(2, height, module.stride[0]).unfold(3, width, module.stride[1])
    images, _, rows, columns = output.shape
    place = torch.rand(images, rows * columns, generator=draw).argsort(dim=1)[:, :positions].to(maps.device)
    image = torch.arange(images, device=maps.device)[:, None]
    row, column = place // columns, place % columns
    return (
        windows[image, :, row, column].flatten(0, 1).flatten(2),
        output[image, :, row, column].flatten(0, 1),
    )


def contributions(consumer: Consumer, windows: torch.Tensor, filters: int) -> torch.Tensor:
    """Gram matrix of what each filter adds to the outputs of the next layer.

    Filter c adds x̂_c = Σ w · x, over its inputs and their taps, to an output at a position. Summed over outputs and
    positions, x̂_c · x̂_d is a sum over entries of (XᵀX) ⊙ (WᵀW).

    Args:
        consumer: The next layer.
        windows: X, ``[S, inputs, taps]``.
        filters: Number of filters, F.

    Returns:
        Σ x̂_c · x̂_d, ``[F, F]``, on the CPU.
    """
    inputs, weight = windows.flatten(1), consumer.weight.flatten(1)
    product = (inputs.T @ inputs) * (weight.T @ weight)
    owner = _owner(consumer, windows, filters)
    return (owner.T @ product @ owner).cpu()


def correlations(consumer: Consumer, windows: torch.Tensor, outputs: torch.Tensor, filters: int) -> torch.Tensor:
    """Σ x̂_c · y over outputs and positions: how what each filter adds goes with some outputs, ``[F]``, on the CPU.

    Args:
        consumer: The next layer.
        windows: X, ``[S, inputs, taps]``.
        outputs: y, ``[S, out_channels]``.
        filters: Number of filters, F.
    """
    product = (windows.flatten(1).T @ outputs) * consumer.weight.flatten(1).T
    return (_owner(consumer, windows, filters).T @ product.sum(dim=1)).cpu()


def _owner(consumer: Consumer, windows: torch.Tensor, filters: int) -> torch.Tensor:
    """1 where a tap belongs to a filter, ``[inputs · taps, F]``."""
    owners = consumer.filters.repeat_interleave(windows.shape[2])
    return F.one_hot(owners, filters).to(windows)


def nearest_solution(matrix: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The smallest least-squares solution of ``matrix @ x = target``, whatever the rank; on the CPU."""
    return torch.linalg.lstsq(matrix.cpu(), target.cpu(), driver="gelsd").solution


def channel_tensors(layer: PrunableLayer) -> list[torch.Tensor]:
    """Everything that belongs to a filter: weight, bias, and its normalisation's scale, shift and mean."""
    norm = layer.norm
    tensors = [layer.weight, layer.bias, *((norm.weight, norm.bias, norm.running_mean) if norm is not None else ())]
    return [tensor for tensor in tensors if tensor is not None]


def silence(layer: PrunableLayer, kept: Sequence[int]) -> None:
    """Let the filters that go output zero from now on."""
    removed = sorted(set(range(layer.channels)) - set(kept))
    with torch.no_grad():
        for tensor in channel_tensors(layer):
            tensor[removed] = 0
