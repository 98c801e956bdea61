"""Scores of filters that read gradients: averaged over batches of images, with no gradient left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.pruning.layers import PrunableLayer

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
Score = Callable[[PrunableLayer], torch.Tensor]


def mean_scores(
    model: nn.Module, layers: Sequence[PrunableLayer], batches: Batches, score: Score
) -> dict[str, torch.Tensor]:
    """Mean over batches of a score that reads the gradients of the batch's mean cross-entropy.

    Args:
        model: The network, in evaluation mode.
        layers: Its prunable layers.
        batches: Images ``[B, C, H, W]`` and labels ``[B]``.
        score: Score of each filter of a layer, ``[out_channels]``; finds gradients on the parameters.

    Returns:
        Scores ``[out_channels]`` in float64, by layer.
    """
    found: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
    for _ in _gradients(model, batches):
        for layer in layers:
            # Squares of small gradients are no numbers of single precision.
            found[layer.name].append(score(layer).detach().double())
    return {name: torch.stack(scores).mean(0) for name, scores in found.items()}


def scores_of_squares(
    model: nn.Module, layers: Sequence[PrunableLayer], batches: Batches, score: Score
) -> dict[str, torch.Tensor]:
    """A score that reads the mean over batches of every squared gradient.

    Of batches of one image it is the diagonal of the empirical Fisher matrix, which stands in for that of the Hessian.

    Args:
        model: The network, in evaluation mode.
        layers: Its prunable layers.
        batches: Images ``[B, C, H, W]`` and labels ``[B]``.
        score: Score of each filter of a layer, ``[out_channels]``; finds the mean squares where gradients are kept.

    Returns:
        Scores ``[out_channels]``, by layer.
    """
    squares = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    count = 0
    for _ in _gradients(model, batches):
        for parameter, square in squares.items():
            if parameter.grad is not None:
                square.addcmul_(parameter.grad, parameter.grad)
        count += 1
    for parameter, square in squares.items():
        parameter.grad = square / count
    scores = {layer.name: score(layer).detach() for layer in layers}
    model.zero_grad()
    return scores


def _gradients(model: nn.Module, batches: Batches) -> Iterator[None]:
    """Put the gradients of one batch after the other on the parameters; none when all have been seen."""
    for images, labels in batches:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        yield
    model.zero_grad()
