"""L1-norm filter pruning with one threshold for all layers."""

import torch

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class L1Global(FilterScore):
    """Smallest mean absolute weight of all layers first. Li et al., ICLR 2017, with GReg's global threshold.

    Mean instead of sum, as in the released code of GReg and TPP: sums of layers with more inputs are larger.

    Layers that lose filters together compete with the mean of their scores.
    """

    scope = "global"
    card = Card(
        criterion="L1 norm / size",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Li et al., ICLR 2017; global threshold as in GReg (Wang et al., ICLR 2021)",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Mean absolute weight of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).mean(dim=1)
