"""The lottery ticket, one-shot: the masks of a trained network on the weights that it started from."""

import torch

from pruneaudit import Card, Kept, PruningTask, PublishedRecipe, WeightScore
from pruneaudit.pruning.layers import PrunableLayer


class LotteryTicket(WeightScore):
    """Masks by magnitude of the trained weights, weights as before training. Frankle & Carbin, ICLR 2019, sec. 2.

    One-shot, as in Liu et al., ICLR 2019, Table 8: the smallest absolute trained weights of all layers go, and
    everything else (biases, normalisations and their statistics, too) is set back to the base's initialisation.

    Deviation: a ticket retrains as long as its protocol says; only S1 and S2 give it a whole training, as the papers
    do.
    """

    scope = "global"
    rewrites = True
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=160,
        lr="0:0.1,80:0.01,120:0.001",
        batch=64,
        weight_decay=1e-4,
        source="Liu et al., ICLR 2019, sec. 6 (their ResNet-50 for CIFAR-10 is nearest to this workload): train the "
        "ticket for 160 epochs",
    )
    card = Card(
        criterion="absolute weight after training",
        schedule="one-shot",
        base="trained for the masks; weights of its initialisation",
        training="none",
        source="Frankle & Carbin, ICLR 2019; Liu et al., ICLR 2019, Table 8",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Absolute values, in the shape of the weights."""
        return layer.weight.abs()

    def prune(self, task: PruningTask) -> Kept:
        """Find the masks, then go back to the start."""
        masks = super().prune(task)
        task.model.load_state_dict(task.initial(0))
        return masks
