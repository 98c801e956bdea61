"""Pruning by the scale of the normalisation, layer by layer."""

import torch
from torch_pruning import importance

from pruneaudit import Card, FilterScore, PruningTask, shapes
from pruneaudit.config import Workload
from pruneaudit.pruning.layers import PrunableLayer


class BNScale(FilterScore):
    """Smallest scale |γ| of the normalisation first, in each layer. Liu et al., ICCV 2017 (network slimming), sec. 3.

    Deviation: no L1 penalty on γ has been trained, so that this is the paper's criterion on an ordinary network; every
    layer loses its share, where the paper has one threshold (``bn-scale-global``).

    Layers that lose filters together compete with the mean of their scores.
    """

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
