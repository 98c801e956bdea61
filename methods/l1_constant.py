"""L1-norm pruning in rounds that take as many filters each."""

import torch

from pruneaudit import Card, IterativeScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class L1Constant(IterativeScore):
    """Smallest L1 norm first, as many filters of a layer in every round. Li et al., ICLR 2017, sec. 3.4: iterative.

    Each round trains an equal part of the pruning budget; filters that went stay away.
    """

    card = Card(
        criterion="L1 norm",
        schedule="iterative: equally many filters a round",
        base="trained",
        training="behind every round",
        source="Li et al., ICLR 2017",
    )

    def __init__(self, rounds: int = 4) -> None:
        super().__init__(rounds, "constant")

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)
