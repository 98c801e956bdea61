"""Layer-adaptive magnitude pruning, layer by layer."""

import torch
from torch_pruning import importance

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class LAMPLayer(FilterScore):
    """LAMP scores with every layer losing its share. Lee et al., ICLR 2021 (LAMP).

    Within a layer the score rises with the norm, so that this keeps what ``l2`` keeps: what separates ``lamp`` from it
    is the allocation over layers alone, which is the paper's point.

    Deviation: filters instead of single weights, and the paper's threshold is global (``lamp``).

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="LAMP score of squared L2 norms",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Lee et al., ICLR 2021",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Squared norm of each filter over those of the filters that are no smaller, ``[out_channels]``."""
        return importance.LAMPImportance(p=2, group_reduction="first")(layer.group)
