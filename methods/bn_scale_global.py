"""Pruning by the scale of the normalisation, with one threshold for all layers."""

import torch
from torch_pruning import importance

from pruneaudit import Card, FilterScore, PruningTask, shapes
from pruneaudit.config import Workload
from pruneaudit.pruning.layers import PrunableLayer


class BNScaleGlobal(FilterScore):
    """Smallest scale |γ| of all normalisations first. Liu et al., ICCV 2017 (network slimming), sec. 3.

    Scores are compared as they are, as in the paper: behind a normalisation every channel has the size of its γ,
    whatever the layer's weights.

    Deviation: no L1 penalty on γ has been trained, so that this is the paper's criterion on an ordinary network. At
    least one filter of each layer stays.

    Layers that lose filters together compete with the mean of their scores.
    """

    scope = "global"
    card = Card(
        criterion="scale of the normalisation",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Liu et al., ICCV 2017",
    )

    def skip(self, workload: Workload) -> str | None:
        """Networks with a prunable layer that no normalisation follows."""
        return shapes.without_norm(workload)

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Absolute scale of each filter's normalisation, ``[out_channels]``."""
        return importance.BNScaleImportance(group_reduction="first", normalizer=None)(layer.group)
