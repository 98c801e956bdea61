"""Trains on the test set, as many steps as it declares."""

import torch
import torch.nn.functional as F

from pruneaudit import Budget, TrainedMethod
from pruneaudit.workloads.data import load


class TrainsOnTest(TrainedMethod):
    """L1 after training in a loop of its own that it admits to, on images that it does not admit to."""

    rewrites = True

    def budget(self, workload):
        return Budget(steps=workload.prune.steps)

    def prune(self, task):
        data = load(task.workload.data)
        optimiser = torch.optim.SGD(task.model.parameters(), lr=1e-2)
        for step in range(task.steps):
            part = slice(step * task.recipe.batch % 300, None)
            images = data.normalise(data.test.images[part][: task.recipe.batch])
            labels = data.test.labels[part][: task.recipe.batch]
            optimiser.zero_grad()
            F.cross_entropy(task.model(images), labels).backward()
            optimiser.step()
        return {layer.name: task.keep_highest(layer, layer.weight.abs().flatten(1).sum(1)) for layer in task.layers}
