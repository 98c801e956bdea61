"""Optimal brain damage of coupled parameters."""

import torch
from torch_pruning import importance

from pruneaudit import Budget, Card, FilterScore, PruningTask
from pruneaudit.config import Workload
from pruneaudit.pruning.gradients import scores_of_squares
from pruneaudit.pruning.layers import PrunableLayer


class GroupHessian(FilterScore):
    """Smallest second-order change of the loss by all that is coupled to a filter. Fang et al., CVPR 2023 (DepGraph).

    The score of a filter is Σ h·w² over what goes with it: its own weights, the scale of its normalisation, and the
    weights that read its channel; h is the mean squared gradient of single images, which stands in for the diagonal of
    the Hessian (LeCun et al., NeurIPS 1989). It is not left to torch-pruning 1.6.1, whose ``accumulate_grad`` keeps the
    last image only. Torch-pruning takes the mean over these parts, which orders filters alike.

    Deviation: squared gradients (empirical Fisher) instead of back-propagated second derivatives, whole filters instead
    of single weights, and no factor ½.

    Layers that lose filters together are one group, with one score.
    """

    card = Card(
        criterion="second-order change of the loss by the group",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Fang et al., CVPR 2023; LeCun et al., NeurIPS 1989",
    )

    def __init__(self, images: int = 64) -> None:
        self.images = images

    def budget(self, workload: Workload) -> Budget:
        """Gradients of single images, no step."""
        return Budget(samples=self.images)

    def prepare(self, task: PruningTask) -> None:
        """Score every layer by squared gradients of single images."""
        hessian = importance.GroupHessianImportance(normalizer=None)
        batches = task.batches(self.images, batch=1)
        task.state |= scores_of_squares(task.model, task.layers, batches, lambda layer: hessian(layer.group))

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Second-order change of the loss without all that is coupled to each filter, ``[out_channels]``."""
        return task.state[layer.name]
