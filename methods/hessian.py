"""Optimal brain damage of filters."""

import torch
from torch_pruning import importance

from pruneaudit import Budget, Card, FilterScore, PruningTask
from pruneaudit.config import Workload
from pruneaudit.pruning.gradients import scores_of_squares
from pruneaudit.pruning.layers import PrunableLayer


class Hessian(FilterScore):
    """Smallest second-order change of the loss first, in each layer. LeCun et al., NeurIPS 1989 (optimal brain damage).

    The score of a filter is Σ h·w² over its weights; h is the mean squared gradient of single images, which stands in
    for the diagonal of the Hessian. It is not left to torch-pruning 1.6.1, whose ``accumulate_grad`` keeps the last
    image only.

    Deviation: squared gradients (empirical Fisher) instead of back-propagated second derivatives, whole filters instead
    of single weights, and no factor ½.

    Layers that lose filters together compete with the mean of their scores.
    """

    card = Card(
        criterion="second-order change of the loss",
        schedule="one-shot",
        base="trained",
        training="none",
        source="LeCun et al., NeurIPS 1989",
    )

    def __init__(self, images: int = 64) -> None:
        self.images = images

    def budget(self, workload: Workload) -> Budget:
        """Gradients of single images, no step."""
        return Budget(samples=self.images)

    def prepare(self, task: PruningTask) -> None:
        """Score every layer by squared gradients of single images."""
        hessian = importance.GroupHessianImportance(group_reduction="first", normalizer=None)
        batches = task.batches(self.images, batch=1)
        task.state |= scores_of_squares(task.model, task.layers, batches, lambda layer: hessian(layer.group))

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Second-order change of the loss without each filter, ``[out_channels]``."""
        return task.state[layer.name]
