"""L1-norm filter pruning."""

import torch

from pruneaudit import Card, FilterScore, PruningTask, PublishedRecipe
from pruneaudit.pruning.layers import PrunableLayer


class L1(FilterScore):
    """Smallest L1 norm first. Li et al., ICLR 2017, sec. 3.1.

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="L1 norm",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Li et al., ICLR 2017",
    )
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=40,
        lr="0:1e-3",
        source="Li et al. 2017, sec. 4: retrain with a constant learning rate of 0.001, 40 epochs on CIFAR-10",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)
