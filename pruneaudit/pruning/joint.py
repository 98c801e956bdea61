"""The exact joint oracle of a chain of layers: the loss of every combination of subsets, as sums over what stays.

What a layer puts out before its activation is a sum over the channels that it reads, so that the contribution of each
channel is computed once, and that of a subset is a sum of some of them. Feng et al. 2024 (arXiv 2412.00143) draw 1,000
of the 16,003,008 combinations that leave half of the filters of LeNet5-Mini's three convolutions; here all of them are
evaluated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from pruneaudit.errors import MethodError
from pruneaudit.workloads.models.lenet import LeNet5

#: Numbers that the last layer's logits of a chunk may be: what a processor's caches hold.
_VALUES = 2**20
_CONVOLUTIONS = ("conv1", "conv2", "conv3")

#: Filters of a layer that stay, in order; and those of several layers.
Subset = tuple[int, ...]
Mask = tuple[Subset, ...]


@dataclass(frozen=True)
class Part:
    """The losses of all combinations that begin with one subset of the first layer.

    Attributes:
        first: The filters of the first layer that stay.
        losses: Mean cross-entropy in nats, ``[subsets of conv2, subsets of conv3]``.
    """

    first: Subset
    losses: np.ndarray


def subsets(width: int, stay: int) -> list[Subset]:
    """All sets of filters that stay, in lexicographic order."""
    return list(itertools.combinations(range(width), stay))


def joint_losses(model: LeNet5, stay: Mapping[str, int], images: torch.Tensor, labels: torch.Tensor) -> Iterator[Part]:
    """Losses without training of every network that keeps so many filters of each convolution.

    They come in parts, so that memory does not grow with the number of combinations: of LeNet5-Mini at half of its
    filters a part has 63,504 losses, and there are 252 parts.

    Args:
        model: The dense network, not changed.
        stay: Filters that stay of each convolution that is pruned; the others stay whole.
        images: Normalised images ``[N, C, 32, 32]``.
        labels: Their labels ``[N]``.

    Yields:
        A part for each subset of ``conv1``, in lexicographic order.

    Raises:
        MethodError: A layer is no convolution of LeNet-5, or cannot keep so many filters.
    """
    choices = subsets_of(model, stay)
    first, second, third = (_indicators(some).to(images) for some in choices)
    bias = {name: tensor for name, tensor in model.named_parameters() if name.endswith("bias")}
    with torch.no_grad():
        of_first = _contributions(F.max_pool2d(F.relu(model.conv1(images)), 2), model.conv2)
        for subset, kept in zip(choices[0], first, strict=True):
            maps = torch.tensordot(kept, of_first, 1) + bias["conv2.bias"][:, None, None]
            of_second = _contributions(F.max_pool2d(F.relu(maps), 2), model.conv3).flatten(2)
            # [subsets of conv2, N, outputs of conv3]
            hidden = F.relu(torch.tensordot(second, of_second, 1) + bias["conv3.bias"])
            yield Part(subset, _tail_losses(model, hidden, third, labels))


def subsets_of(model: LeNet5, stay: Mapping[str, int]) -> list[list[Subset]]:
    """All sets of filters that each convolution may keep.

    Raises:
        MethodError: A layer is no convolution of LeNet-5, or cannot keep so many filters.
    """
    for layer in stay:
        if layer not in _CONVOLUTIONS:
            raise MethodError(f"'{layer}' is no convolution of LeNet-5; choose among {', '.join(_CONVOLUTIONS)}")
    found = []
    for layer in _CONVOLUTIONS:
        width = len(model.get_parameter(f"{layer}.bias"))
        count = stay.get(layer, width)
        if not 0 < count <= width:
            raise MethodError(f"{layer} has {width} filters; {count} cannot stay")
        found.append(subsets(width, count))
    return found


def _indicators(choices: Sequence[Subset]) -> torch.Tensor:
    """Which filters each subset keeps, ``[subsets, filters]``."""
    found = torch.zeros(len(choices), 1 + max(map(max, choices)))
    for row, kept in zip(found, choices, strict=True):
        row[list(kept)] = 1
    return found


def _contributions(maps: torch.Tensor, layer: torch.nn.Conv2d) -> torch.Tensor:
    """What each input channel adds to a convolution's outputs, ``[channels, N, outputs, H, W]``."""
    return torch.stack(
        [F.conv2d(maps[:, [channel]], layer.weight[:, [channel]]) for channel in range(layer.in_channels)]
    )


def _tail_losses(model: LeNet5, hidden: torch.Tensor, keeps: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Mean losses ``[M, S]`` of ``hidden`` ``[M, N, C]`` behind every one of ``keeps`` ``[S, C]``.

    The first fully connected layer reads what stays: for each subset its weights are zero elsewhere.
    """
    weights = keeps[:, :, None] * model.fc1.weight.T  # [S, C, outputs]
    choices, channels, outputs = weights.shape
    wide = weights.permute(1, 0, 2).reshape(channels, choices * outputs)
    bias = model.fc1.bias.repeat(choices)
    rows, images, _ = hidden.shape
    size = max(1, _VALUES // (images * choices * outputs))
    found = torch.empty(rows, choices, dtype=torch.float64)
    for start in range(0, rows, size):
        some = hidden[start : start + size].flatten(0, 1)
        inner = F.relu_(torch.addmm(bias, some, wide)).view(-1, outputs)
        logits = torch.addmm(model.fc2.bias, inner, model.fc2.weight.T)
        wanted = labels[:, None].expand(images, choices).repeat(len(some) // images, 1).flatten()
        losses = F.cross_entropy(logits, wanted, reduction="none").view(-1, images, choices)
        found[start : start + size] = losses.double().mean(dim=1)
    return found.numpy()


@dataclass
class Joint:
    """The exact oracle over all combinations of filters, by loss over some training images.

    Attributes:
        combinations: How many there are.
        images: Training images that the losses are means over.
        best: The combination with the lowest loss.
        lowest: Its loss.
        sampled: Lowest loss among the networks of the population, over the same images.
        below: Combinations with a lower loss than that.
        histogram: Number of combinations by loss, with the edges of the bins.
        edges: Edges of its bins, in nats.
        accuracies: Test accuracy of the best combination after retraining, by repeat.
    """

    combinations: int
    images: int
    best: Mask
    lowest: float
    sampled: float
    below: int
    histogram: list[int] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def search(
    model: LeNet5,
    layers: Sequence[str],
    stay: Mapping[str, int],
    masks: Sequence[Mask],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> Joint:
    """Find the combination with the lowest loss, and how some others do among all of them.

    Args:
        model: The dense network.
        layers: The layers that lose filters, in their order.
        stay: Filters that stay of each of them.
        masks: Some combinations, such as a sample.
        images: Normalised images ``[N, C, H, W]``.
        labels: Their labels ``[N]``.
    """
    every = subsets_of(model, stay)
    places = [{subset: place for place, subset in enumerate(some)} for some in every]
    whole = tuple(some[0] for some in every)

    def combination(mask: Mask) -> tuple[int, ...]:
        kept = dict(zip(layers, mask, strict=True))
        return tuple(
            place[kept.get(name, all_)] for name, place, all_ in zip(_CONVOLUTIONS, places, whole, strict=True)
        )

    wanted: dict[int, list[tuple[int, int]]] = {}
    for mask in masks:
        first, second, third = combination(mask)
        wanted.setdefault(first, []).append((second, third))
    # One pass: 16 million losses are 64 MB as float32.
    table = torch.empty([len(some) for some in every])
    sampled = math.inf
    for place_of_first, part in enumerate(joint_losses(model, stay, images, labels)):
        losses = torch.from_numpy(part.losses)
        table[place_of_first] = losses
        sampled = min([sampled, *(float(losses[pair]) for pair in wanted.get(place_of_first, ()))])
    best = torch.unravel_index(table.argmin(), table.shape)
    chosen = {name: some[int(place)] for name, some, place in zip(_CONVOLUTIONS, every, best, strict=True)}
    lowest, highest = float(table.min()), float(table.max())
    histogram = torch.histc(table, 60, lowest, highest)
    return Joint(
        combinations=table.numel(),
        images=len(labels),
        best=tuple(chosen[layer] for layer in layers),
        lowest=lowest,
        sampled=sampled,
        # Rounding to float32 must not make a combination better than itself.
        below=int((table < torch.tensor(sampled, dtype=torch.float32)).sum()),
        histogram=[int(count) for count in histogram],
        edges=torch.linspace(lowest, highest, 61).tolist(),
    )
