"""The pruned architecture, trained from random initialisation."""

from pruneaudit import Card, ScratchArm
from pruneaudit.config import Recipe, Workload


class Scratch(ScratchArm):
    """The pruned shape from random weights, on the workload's scratch recipe. Wang et al. 2023, sec. 4.

    SX-A and SX-B set its number of epochs so that total epochs or total training MACs are equal.
    """

    follows_protocol = True
    card = Card(
        criterion="none: the shape is given",
        schedule="none",
        base="random weights",
        training="none",
        source="Wang et al. 2023 (arXiv 2301.05219), sec. 4",
    )

    def recipe(self, workload: Workload, speedup: float) -> Recipe:
        """The workload's scratch recipe."""
        return workload.scratch
