"""Random filter pruning, the control."""

import torch

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class Random(FilterScore):
    """Uniformly random filters, drawn layer by layer. The control of Blalock et al., MLSys 2020, appendix B.

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="none (a uniform draw)",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Blalock et al., MLSys 2020",
    )

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """A uniform draw for each filter, ``[out_channels]``, from the layer's own stream."""
        return torch.rand(layer.channels, generator=task.generator(layer.name), dtype=torch.float64)
