"""L1-norm pruning in rounds that take the same share of what is left."""

import torch

from pruneaudit import Card, IterativeScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class L1Geometric(IterativeScore):
    """Smallest L1 norm first, the same share of the filters that are left in every round. Li et al., ICLR 2017.

    Each round trains an equal part of the pruning budget; filters that went stay away. Shares of what is left are how
    iterative magnitude pruning takes weights (Han et al., NeurIPS 2015; Frankle & Carbin, ICLR 2019).
    """

    card = Card(
        criterion="L1 norm",
        schedule="iterative: the same share of what is left a round",
        base="trained",
        training="behind every round",
        source="Li et al., ICLR 2017; Han et al., NeurIPS 2015",
    )

    def __init__(self, rounds: int = 4) -> None:
        super().__init__(rounds, "geometric")

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)
