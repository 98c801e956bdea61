"""Random filter pruning, retrained with the dense base as teacher: the control of what recovers by distillation."""

import torch

from pruneaudit import Card, Distillation, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class RandomDistilled(FilterScore):
    """Uniformly random filters, then recovery by distillation. Blalock et al., MLSys 2020; Hinton et al. 2015, sec. 2.

    As ``random``, retrained as ``l1-distilled`` is: arms with the same teacher are comparable (F324), and what the
    teacher gives, it gives both.

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="none (a uniform draw)",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Blalock et al., MLSys 2020; Hinton et al. 2015 (arXiv 1503.02531)",
    )

    def __init__(self, temperature: float = 4.0, weight: float = 0.9) -> None:
        self.temperature = temperature
        self.weight = weight

    def distillation(self) -> Distillation:
        """The base teaches."""
        return Distillation(temperature=self.temperature, weight=self.weight)

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """A uniform draw for each filter, ``[out_channels]``, from the layer's own stream."""
        return torch.rand(layer.channels, generator=task.generator(layer.name), dtype=torch.float64)
