"""The control of the lottery ticket for filters: the same filters on fresh random weights."""

import torch

from pruneaudit import Card, FilterScore, Kept, PruningTask
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.workloads.models.initialise import initialise


class LotteryRandomReinitFilter(FilterScore):
    """Filters by L1 norm of the trained weights, fresh random weights. Liu et al., ICLR 2019, sec. 6.

    The filters are those of ``lottery-ticket-filter``; everything else is drawn anew by the rule that base models are
    initialised with, so that ticket and control differ in the draw alone.

    Deviation: the control retrains as long as its protocol says.
    """

    rewrites = True
    card = Card(
        criterion="L1 norm after training",
        schedule="one-shot",
        base="trained for the choice; fresh random weights",
        training="none",
        source="Frankle & Carbin, ICLR 2019; Liu et al., ICLR 2019, sec. 6",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)

    def prune(self, task: PruningTask) -> Kept:
        """Choose filters, then draw everything anew."""
        kept = super().prune(task)
        initialise(task.model, task.generator("reinit"))
        return kept
