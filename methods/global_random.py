"""Random filter pruning with one threshold for all layers."""

import torch

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class GlobalRandom(FilterScore):
    """Uniformly random filters of all layers: the control of global thresholds. After Blalock et al., MLSys 2020.

    Every filter of the network is equally likely to go, and widths are left to chance: layer by layer the share that
    stays scatters like a binomial one, and at least one filter stays. ``random`` has every layer lose its share.

    The id does not start with "random" because such controls must keep the same share of every layer within one filter
    (conformance check ``uniform-over-width``), which independent draws cannot.

    Layers that lose filters together compete with the mean of their scores.
    """

    scope = "global"
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
