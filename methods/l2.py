"""L2-norm filter pruning."""

import torch
from torch_pruning import importance

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class L2(FilterScore):
    """Smallest L2 norm first. He et al., IJCAI 2018 (soft filter pruning, p = 2).

    The score of a filter is Σ w² over its weights, torch-pruning's magnitude of the layer alone
    (``group_reduction="first"``); its root, the norm, orders filters alike.

    Deviation: the filters go once and stay away; the paper zeroes them after each epoch of training and lets them
    regrow.

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="squared L2 norm",
        schedule="one-shot",
        base="trained",
        training="none",
        source="He et al., IJCAI 2018",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of squared weights of each filter, ``[out_channels]``."""
        magnitude = importance.GroupMagnitudeImportance(p=2, group_reduction="first", normalizer=None)
        return magnitude(layer.group)
