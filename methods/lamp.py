"""Layer-adaptive magnitude pruning."""

import torch
from torch_pruning import importance

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class LAMP(FilterScore):
    """Squared magnitude relative to all that is as large in its layer, one threshold. Lee et al., ICLR 2021 (LAMP).

    With the filters of a layer in order of ‖w‖², the score of filter i is ‖w_i‖² / Σ_{j ≥ i} ‖w_j‖². It needs no
    further normalisation: it is the share that the filter has in what is left of the layer's squared norm when all
    smaller filters are gone, and the largest filter of every layer scores 1.

    Deviation: filters instead of single weights, as in torch-pruning's LAMPImportance (of the layer alone,
    ``group_reduction="first"``).

    Layers that lose filters together compete with the mean of their scores.
    """

    scope = "global"
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
