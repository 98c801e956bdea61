"""Random pruning of single weights, the control."""

import torch

from pruneaudit import Card, PruningTask, WeightScore
from pruneaudit.pruning.layers import PrunableLayer


class RandomWeight(WeightScore):
    """Uniformly random weights, drawn layer by layer. The control of Blalock et al., MLSys 2020, appendix B.

    Every layer loses the same share: the layerwise sibling of ``matched-random-weight``.
    """

    card = Card(
        criterion="none: uniform draws",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Blalock et al., MLSys 2020, appendix B",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """A uniform draw for each weight, in the shape of the weights, from the layer's own stream."""
        return torch.rand(layer.weight.shape, generator=task.generator(layer.name), dtype=torch.float64)
