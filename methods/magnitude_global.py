"""Magnitude pruning of single weights, one threshold for all layers."""

import torch

from pruneaudit import Card, PruningTask, WeightScore
from pruneaudit.pruning.layers import PrunableLayer


class MagnitudeGlobal(WeightScore):
    """Smallest absolute weights of all layers first. Han et al., NeurIPS 2015; Blalock et al., MLSys 2020, sec. 7.

    Deviation: biases and normalisations keep all their values (ShrinkBench masks biases, too).
    """

    scope = "global"
    card = Card(
        criterion="absolute weight",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Han et al., NeurIPS 2015; Blalock et al., MLSys 2020",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Absolute values, in the shape of the weights."""
        return layer.weight.abs()
