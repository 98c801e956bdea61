"""L1-norm pruning in one round whose pruning budget trains the pruned network."""

import torch

from pruneaudit import Card, IterativeScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class L1Once(IterativeScore):
    """Smallest L1 norm first, at once, then training. Li et al., ICLR 2017, sec. 3.4: prune once and retrain.

    The pruning budget trains the pruned network, which retrains as every arm does: what arms that prune in rounds have
    to be compared with, for ``l1`` would train the dense network where training has to be equally long.
    """

    card = Card(
        criterion="L1 norm",
        schedule="one-shot",
        base="trained",
        training="behind the only round",
        source="Li et al., ICLR 2017",
    )

    def __init__(self) -> None:
        super().__init__(1, "constant")

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)
