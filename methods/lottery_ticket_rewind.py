"""The lottery ticket with late rewinding: back to an early epoch instead of the initialisation."""

import torch

from pruneaudit import Card, Kept, PruningTask, PublishedRecipe, WeightScore
from pruneaudit.pruning.layers import PrunableLayer


class LotteryTicketRewind(WeightScore):
    """Masks by magnitude of the trained weights, weights of an early epoch. Frankle et al., ICML 2020, sec. 4.

    As ``lottery-ticket``, but the network is set back to what the base model was after ``epoch`` epochs.

    Deviation: one-shot (theirs iterates), and rewound to an epoch (theirs to a step within the first percents of the
    training). A base model of E epochs is rewound to epoch E - 1 at the latest. A ticket retrains as long
    as its protocol says; only S1 and S2 give it a whole training.
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
        base="trained for the masks; weights of an early epoch",
        training="none",
        source="Frankle et al., ICML 2020 (Linear Mode Connectivity)",
    )

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Absolute values, in the shape of the weights."""
        return layer.weight.abs()

    def prune(self, task: PruningTask) -> Kept:
        """Find the masks, then go back to the early epoch."""
        masks = super().prune(task)
        last = (task.workload.pretrain.epochs or 1) - 1
        task.model.load_state_dict(task.initial(min(self.epoch, last)))
        return masks
