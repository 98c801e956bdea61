"""Scratch-B: as much computation as the base model had."""

import math

from pruneaudit import Card, ScratchArm
from pruneaudit.config import Recipe, Workload


class ScratchB(ScratchArm):
    """The pruned shape from random weights, for the training computation of the large model. Liu et al., ICLR 2019.

    Epochs are the base model's times MACs(base) / MACs(pruned), rounded down, as in the authors' CIFAR code (uncapped;
    their cap of twice the epochs is for ImageNet). The retraining of the pruned arm is not counted: that is SX-B.
    """

    card = Card(
        criterion="none: the shape is given",
        schedule="none",
        base="random weights",
        training="none",
        source="Liu et al., ICLR 2019, sec. 3",
    )

    def recipe(self, workload: Workload, speedup: float) -> Recipe:
        """The scratch recipe over the base model's epochs times the speedup."""
        return workload.scratch.for_epochs(math.floor(workload.pretrain.epochs * speedup))
