"""The lottery ticket for filters: those of a trained network on the weights that it started from."""

import torch

from pruneaudit import Card, FilterScore, Kept, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class LotteryTicketFilter(FilterScore):
    """Filters by L1 norm of the trained weights, weights as before training. Liu et al., ICLR 2019, sec. 6.

    One-shot: the filters of smallest trained L1 norm go in each layer, and everything else (biases, normalisations and
    their statistics, too) is set back to the base's initialisation.

    Deviation: a ticket retrains as long as its protocol says.
    """

    rewrites = True
    card = Card(
        criterion="L1 norm after training",
        schedule="one-shot",
        base="trained for the choice; weights of its initialisation",
        training="none",
        source="Frankle & Carbin, ICLR 2019; Liu et al., ICLR 2019, sec. 6",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)

    def prune(self, task: PruningTask) -> Kept:
        """Choose filters, then go back to the start."""
        kept = super().prune(task)
        task.model.load_state_dict(task.initial(0))
        return kept
