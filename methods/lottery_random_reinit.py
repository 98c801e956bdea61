"""The control of the lottery ticket: the same masks on fresh random weights."""

import torch

from pruneaudit import Card, Kept, PruningTask, PublishedRecipe, WeightScore
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.workloads.models.initialise import initialise


class LotteryRandomReinit(WeightScore):
    """Masks by magnitude of the trained weights, fresh random weights. Frankle & Carbin, ICLR 2019, sec. 2.

    The masks are those of ``lottery-ticket``; everything else is drawn anew by the rule that base models are
    initialised with. Liu et al., ICLR 2019, Table 8, call it random initialisation; their scaling of the deviation by
    the density (which they found to bring nothing) is left out, so that ticket and control differ in the draw alone.

    Deviation: the control retrains as long as its protocol says.
    """

    scope = "global"
    rewrites = True
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=160,
        lr="0:0.1,80:0.01,120:0.001",
        batch=64,
        weight_decay=1e-4,
        source="Liu et al., ICLR 2019, sec. 6 (their ResNet-50 for CIFAR-10 is nearest to this workload): train for "
        "160 epochs",
    )
    card = Card(
        criterion="absolute weight after training",
        schedule="one-shot",
        base="trained for the masks; fresh random weights",
        training="none",
        source="Frankle & Carbin, ICLR 2019; Liu et al., ICLR 2019, Table 8",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Absolute values, in the shape of the weights."""
        return layer.weight.abs()

    def prune(self, task: PruningTask) -> Kept:
        """Find the masks, then draw everything anew."""
        masks = super().prune(task)
        initialise(task.model, task.generator("reinit"))
        return masks
