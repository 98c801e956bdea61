"""Wanda: weights times norms of their inputs, output by output."""

import torch

from pruneaudit import Card, PruningTask, WeightScore
from pruneaudit.pruning.arrivals import arrivals
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.patterns import ranks


class Wanda(WeightScore):
    """Smallest |weight| · norm of its input of each output first. Sun et al., ICLR 2024, sec. 3 and algorithm 1.

    The norm ‖x‖₂ is that of the input channel over all calibration examples and tokens (places of a map). Weights
    compete with those of the same output, so that every output loses the same share; nothing is updated.

    Deviation: all layers are scored on the dense network; the authors' code prunes block by block, and each sees what
    arrives behind pruned ones. Where a share of a row is no whole number, the first rows lose one weight more.
    """

    card = Card(
        criterion="absolute weight x norm of its input, within each output",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Sun et al., ICLR 2024",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def prepare(self, task: PruningTask) -> None:
        """Norms of what arrives at every layer, without gradients."""
        self._seen = arrivals(task.model, [layer.name for layer in task.layers], task.batches(self.batches))

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Rank of each weight within its output, in the shape of the weights."""
        norms = self._seen[layer.name].squares.sqrt().view(-1, *[1] * (layer.weight.dim() - 2))
        scores = layer.weight.double().abs().cpu() * norms
        return ranks(scores.flatten(1)).view(scores.shape)
