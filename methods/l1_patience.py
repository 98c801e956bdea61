"""L1-norm pruning in rounds, each of which trains until that no longer pays."""

import torch

from pruneaudit import Card, IterativeScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class L1Patience(IterativeScore):
    """Smallest L1 norm first, the same share of what is left a round; rounds end by patience. Janusz et al. 2025.

    A round ends when the training loss has not been lower for so many looks, and what it did not use goes to the last
    one: the pruning budget is that of arms whose rounds are equally long. The published stopping looks at held-out
    accuracy, which no method sees here.
    """

    card = Card(
        criterion="L1 norm",
        schedule="iterative: the same share of what is left a round, rounds end by patience",
        base="trained",
        training="behind every round",
        source="Li et al., ICLR 2017; Janusz et al. 2025 (arXiv 2508.13836)",
    )

    def __init__(self, rounds: int = 4, patience: int = 1) -> None:
        super().__init__(rounds, "geometric", patience)

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)
