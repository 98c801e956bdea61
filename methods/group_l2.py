"""L2 norm of coupled parameters."""

import torch
from torch_pruning import importance

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class GroupL2(FilterScore):
    """Smallest L2 norm of what is coupled to a filter first. Fang et al., CVPR 2023 (DepGraph).

    The score of a filter is Σ w² over what goes with it: its own weights, the scale of its normalisation, and the
    weights that read its channel. Torch-pruning takes the mean over these parts, which orders filters alike.

    Deviation: without the paper's sparse training.

    Layers that lose filters together are one group, with one score.
    """

    card = Card(
        criterion="squared L2 norm of the group",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Fang et al., CVPR 2023",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Mean over the coupled parts of the sum of squared weights of each filter, ``[out_channels]``."""
        return importance.GroupMagnitudeImportance(p=2, normalizer=None)(layer.group)
