"""First-order Taylor pruning with one threshold for all layers."""

import torch
from torch_pruning import importance

from pruneaudit import Budget, Card, FilterScore, PruningTask
from pruneaudit.config import Workload
from pruneaudit.pruning.gradients import mean_scores
from pruneaudit.pruning.layers import PrunableLayer


class TaylorGlobal(FilterScore):
    """Smallest first-order change of the loss of all layers first. Molchanov et al., CVPR 2019 (Taylor-FO).

    The score of a filter is (Σ g·w)² over its weights w with gradients g, averaged over batches: the squared change of
    the loss, to first order, when the filter goes. Torch-pruning gives |Σ g·w| (``multivariable=True``) of each batch.
    All scores are changes of one loss: they are compared as they are, as in the paper.

    Deviation: the paper removes a few filters at a time between training steps, and prefers gates behind the
    normalisation to weights.

    Layers that lose filters together compete with the mean of their scores.
    """

    scope = "global"
    card = Card(
        criterion="squared first-order change of the loss",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Molchanov et al., CVPR 2019",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def budget(self, workload: Workload) -> Budget:
        """Gradients of a few batches, no step."""
        return Budget(samples=self.batches * workload.prune.batch)

    def prepare(self, task: PruningTask) -> None:
        """Score every layer by the gradients of each batch."""
        taylor = importance.GroupTaylorImportance(group_reduction="first", normalizer=None, multivariable=True)
        batches = task.batches(self.batches)
        task.state |= mean_scores(task.model, task.layers, batches, lambda layer: taylor(layer.group).double().square())

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Squared first-order change of the loss without each filter, ``[out_channels]``."""
        return task.state[layer.name]
