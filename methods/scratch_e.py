"""Scratch-E: as many epochs as the base model had."""

from pruneaudit import Card, ScratchArm
from pruneaudit.config import Recipe, Workload


class ScratchE(ScratchArm):
    """The pruned shape from random weights, for the epochs of the large model. Liu et al., ICLR 2019, sec. 3."""

    card = Card(
        criterion="none: the shape is given",
        schedule="none",
        base="random weights",
        training="none",
        source="Liu et al., ICLR 2019, sec. 3",
    )

    def recipe(self, workload: Workload, speedup: float) -> Recipe:
        """The scratch recipe over the base model's epochs."""
        return workload.scratch.for_epochs(workload.pretrain.epochs)
