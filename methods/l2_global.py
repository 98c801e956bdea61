"""L2-norm filter pruning with one threshold for all layers."""

import torch
from torch_pruning import importance

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class L2Global(FilterScore):
    """Smallest mean squared weight of all layers first. He et al., IJCAI 2018 (L2 norm), with GReg's global threshold.

    The score of a filter of D weights is Σ w² / D. Mean instead of sum, as in ``l1-global``, so that the two differ in
    the norm alone: sums of layers with more inputs are larger.

    Deviation: the paper removes the same share of every layer.

    Layers that lose filters together compete with the mean of their scores.
    """

    scope = "global"
    card = Card(
        criterion="squared L2 norm / size",
        schedule="one-shot",
        base="trained",
        training="none",
        source="He et al., IJCAI 2018; global threshold as in GReg (Wang et al., ICLR 2021)",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Mean squared weight of each filter, ``[out_channels]``."""
        magnitude = importance.GroupMagnitudeImportance(p=2, group_reduction="first", normalizer=None)
        return magnitude(layer.group) / layer.weight[0].numel()
