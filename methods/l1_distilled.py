"""L1-norm filter pruning, retrained with the dense base as teacher."""

import torch

from pruneaudit import Card, Distillation, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class L1Distilled(FilterScore):
    """Smallest L1 norm first, recovery by distillation. Li et al., ICLR 2017; Hinton et al. 2015, sec. 2.

    Retrained on (1 - ``weight``) · CE + ``weight`` · T² · KL(base ‖ network), both distributions softened by the
    ``temperature`` T. The teacher is the arm's own dense base, frozen; the harness has it, and counts one dense pass
    for each image. Of texts every token has its soft labels.

    Deviation: Hinton et al. distil into a network of fresh weights; here it begins with what pruning left. T = 4 and a
    weight of 0.9 are those of Zagoruyko & Komodakis (ICLR 2017), sec. 4: Hinton et al. choose them by task.

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="L1 norm",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Li et al., ICLR 2017; Hinton et al. 2015 (arXiv 1503.02531)",
    )

    def __init__(self, temperature: float = 4.0, weight: float = 0.9) -> None:
        self.temperature = temperature
        self.weight = weight

    def distillation(self) -> Distillation:
        """The base teaches."""
        return Distillation(temperature=self.temperature, weight=self.weight)

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)
