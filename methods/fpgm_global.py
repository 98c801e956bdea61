"""Filter pruning via the geometric median with one threshold for all layers."""

import torch

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class FPGMGlobal(FilterScore):
    """Filters nearest to the geometric median, relative to their layer. He et al., CVPR 2019 (FPGM), sec. 3.

    The score of filter i is Σ_j ‖w_i − w_j‖₂ over the filters of its layer, divided by the mean of the layer: the sums
    grow with the number of filters, their size and the scale of their weights, and the mean takes out all three.
    Torch-pruning 1.6.1 squares the weights before it takes distances (``p=2``) or drops their signs (``p=1``), so that
    the formula is written out here.

    Deviation: the paper removes the same share of every layer, and softly, while it trains. The division is
    torch-pruning's default (``normalizer="mean"``).

    Layers that lose filters together compete with the mean of their scores.
    """

    scope = "global"
    card = Card(
        criterion="distance to the other filters / mean of the layer",
        schedule="one-shot",
        base="trained",
        training="none",
        source="He et al., CVPR 2019; normalisation of torch-pruning",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of Euclidean distances to the filters of the layer, relative to the layer's mean, ``[out_channels]``."""
        filters = layer.weight.flatten(1)
        # By differences: the quicker way by products cannot tell near filters apart.
        distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
        return distances / distances.mean()
