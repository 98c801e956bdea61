"""Filter pruning via the geometric median."""

import torch

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class FPGM(FilterScore):
    """Filters nearest to the geometric median of their layer first. He et al., CVPR 2019 (FPGM), sec. 3.

    The score of filter i is Σ_j ‖w_i − w_j‖₂ over the filters of its layer: the filter with the smallest sum is the
    median, and the others can best replace it. Torch-pruning 1.6.1 squares the weights before it takes distances
    (``p=2``) or drops their signs (``p=1``), so that the formula is written out here.

    Deviation: the filters go once and stay away; the paper zeroes them after each epoch of training and lets them
    regrow.

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="distance to the other filters",
        schedule="one-shot",
        base="trained",
        training="none",
        source="He et al., CVPR 2019",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of Euclidean distances to the filters of the layer, ``[out_channels]``."""
        filters = layer.weight.flatten(1)
        # By differences: the quicker way by products cannot tell near filters apart.
        return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
