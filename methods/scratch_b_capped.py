"""Scratch-B with the cap of ImageNet: at most twice the epochs of the base model."""

import math

from pruneaudit import Card, ScratchArm
from pruneaudit.config import Recipe, Workload


class ScratchBCapped(ScratchArm):
    """As Scratch-B, but for at most twice the epochs of the large model. Liu et al., ICLR 2019, sec. 3 (ImageNet).

    Epochs are the base model's times min(2, MACs(base) / MACs(pruned)), rounded down.
    """

    card = Card(
        criterion="none: the shape is given",
        schedule="none",
        base="random weights",
        training="none",
        source="Liu et al., ICLR 2019, sec. 3",
    )

    def recipe(self, workload: Workload, speedup: float) -> Recipe:
        """The scratch recipe over the base model's epochs times the speedup, capped."""
        return workload.scratch.for_epochs(math.floor(workload.pretrain.epochs * min(speedup, 2)))
