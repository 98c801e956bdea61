"""L2 norm of coupled parameters with one threshold for all layers."""

import torch
from torch_pruning import importance

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class GroupL2Global(FilterScore):
    """Smallest L2 norm of what is coupled to a filter, relative to its layer. Fang et al., CVPR 2023 (DepGraph).

    The score of a filter is Σ w² over what goes with it (its own weights, the scale of its normalisation, and the
    weights that read its channel), divided by the mean of the layer: torch-pruning's default. Sums of wide layers are
    larger, and behind a normalisation the scale of a layer's weights says nothing.

    Deviation: without the paper's sparse training; the paper divides by the mean of the N largest scores of a layer.

    Layers that lose filters together are one group, with one score.
    """

    scope = "global"
    card = Card(
        criterion="squared L2 norm of the group / mean of the layer",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Fang et al., CVPR 2023",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Squared weights of what is coupled to each filter, relative to the layer's mean, ``[out_channels]``."""
        return importance.GroupMagnitudeImportance(p=2, normalizer="mean")(layer.group)
