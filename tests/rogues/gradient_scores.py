"""Scores with gradients of ten batches and declares none of them."""

import torch
import torch.nn.functional as F

from pruneaudit import FilterScore

BATCHES = 10


class GradientScores(FilterScore):
    """First-order Taylor scores whose images it forgot to declare."""

    def prune(self, task):
        with torch.enable_grad():
            for images, labels in task.batches(BATCHES):
                F.cross_entropy(task.model(images), labels).backward()
        return super().prune(task)

    def score(self, layer, task):
        return (layer.weight * layer.weight.grad).flatten(1).sum(dim=1).square()
