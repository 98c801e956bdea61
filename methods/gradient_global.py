"""Gradient times weight, one threshold for all layers."""

import torch

from pruneaudit import Budget, Card, PruningTask, WeightScore
from pruneaudit.config import Workload
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.minibatch import weight_gradients


class GradientGlobal(WeightScore):
    """Smallest |weight · gradient| of all layers first. Blalock et al., MLSys 2020, sec. 7 (gradient magnitude).

    The gradient is that of the cross-entropy on one training minibatch: to first order, the score is by how much the
    loss changes when the weight goes.

    Deviation: the gradient is taken with the running statistics of normalisations, so that scoring changes none of them
    (ShrinkBench: with those of the minibatch). Biases keep all their values (ShrinkBench masks them, too).
    """

    scope = "global"
    card = Card(
        criterion="absolute weight x gradient",
        schedule="one-shot",
        base="trained",
        training="none; gradients of one minibatch",
        source="Blalock et al., MLSys 2020 (ShrinkBench)",
    )

    def budget(self, workload: Workload) -> Budget:
        """One minibatch with gradients."""
        return Budget(samples=workload.prune.batch)

    def prepare(self, task: PruningTask) -> None:
        """Gradients of the trained network."""
        ((images, labels),) = task.batches(1)
        self._gradients = weight_gradients(task.model, task.layers, images, labels)

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Absolute product of weight and gradient, in the shape of the weights."""
        return (layer.weight * self._gradients[layer.name]).abs()
