"""Wanda with an n:m pattern."""

import torch

from pruneaudit import Card, PruningTask, WeightScore, shapes
from pruneaudit.config import Workload
from pruneaudit.pruning.arrivals import arrivals
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.patterns import ranks, removed_of


class WandaNM(WeightScore):
    """Smallest |weight| · norm of its input of every four neighbours first. Sun et al., ICLR 2024, sec. 4.1 (n:m).

    Of every ``neighbours`` inputs of an output, one behind the other, as many go as the ratio says: half of four leave
    the 2:4 pattern that sparse tensor cores execute (Mishra et al. 2021). The score is that of ``wanda``.

    Deviation: all layers are scored on the dense network. Of convolutions neighbours are those of the matrix
    ``[out, in · taps]``. Networks where a row is no multiple of ``neighbours`` have no such pattern.
    """

    card = Card(
        criterion="absolute weight x norm of its input, within few neighbours",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Sun et al., ICLR 2024",
    )

    def __init__(self, batches: int = 4, neighbours: int = 4) -> None:
        self.batches = batches
        self.neighbours = neighbours

    def skip(self, workload: Workload) -> str | None:
        """Networks with rows that are no multiple."""
        return shapes.without_pattern(workload, self.neighbours)

    def pattern(self) -> int:
        """So many neighbours."""
        return self.neighbours

    def prepare(self, task: PruningTask) -> None:
        """Norms of what arrives at every layer, without gradients."""
        removed_of(task.ratio, self.neighbours)
        self._seen = arrivals(task.model, [layer.name for layer in task.layers], task.batches(self.batches))

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Rank of each weight among its neighbours, in the shape of the weights."""
        norms = self._seen[layer.name].squares.sqrt().view(-1, *[1] * (layer.weight.dim() - 2))
        scores = layer.weight.double().abs().cpu() * norms
        return ranks(scores.reshape(-1, self.neighbours)).view(scores.shape)
