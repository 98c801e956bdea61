"""Pruning by the rank of feature maps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit import Card, FilterScore, PruningTask
from pruneaudit.pruning.layers import PrunableLayer


class HRank(FilterScore):
    """Smallest average rank of the feature map first. Lin et al., CVPR 2020 (HRank), sec. 3.

    The score of a filter is the rank of its feature map [H, W], averaged over training images. Feature map: what ReLU
    leaves of the filter's (normalised) output, as in the authors' code. Ranks are few on small maps; of equal filters
    the lower index goes first.

    Deviation: all layers are pruned at once and retrained as every arm is; the paper prunes and retrains layer by
    layer. Images are augmented ones of the training split, 512 at batch 64 instead of 500.

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="average rank of the feature map",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Lin et al., CVPR 2020",
    )

    def __init__(self, batches: int = 8) -> None:
        self.batches = batches

    def prepare(self, task: PruningTask) -> None:
        """Sum the ranks of all feature maps over images, without gradients."""
        for layer in task.layers:
            task.state[layer.name] = torch.zeros(layer.channels, dtype=torch.float64, device=layer.weight.device)

        def watch(layer: PrunableLayer) -> Any:
            def add(_module: nn.Module, _inputs: Any, maps: torch.Tensor) -> None:
                task.state[layer.name] += torch.linalg.matrix_rank(F.relu(maps)).sum(0)

            return (layer.module if layer.norm is None else layer.norm).register_forward_hook(add)

        handles = [watch(layer) for layer in task.layers]
        with torch.no_grad():
            for images, _ in task.batches(self.batches):
                task.model(images)
        for handle in handles:
            handle.remove()

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Ranks of each filter's feature maps, summed over the images, ``[out_channels]``."""
        return task.state[layer.name]
