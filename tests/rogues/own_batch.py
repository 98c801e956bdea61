"""Takes the declared number of steps, each with four times the images."""

import torch
import torch.nn.functional as F

from pruneaudit import Budget, TrainedMethod


class OwnBatch(TrainedMethod):
    """L1 after as many steps as declared, in a loop of its own that it admits to, with large batches."""

    rewrites = True

    def budget(self, workload):
        return Budget(steps=workload.prune.steps)

    def prune(self, task):
        optimiser = torch.optim.SGD(task.model.parameters(), lr=1e-3)
        for images, labels in task.batches(task.steps, 4 * task.recipe.batch):
            optimiser.zero_grad()
            F.cross_entropy(task.model(images), labels).backward()
            optimiser.step()
        return {layer.name: task.keep_highest(layer, layer.weight.abs().flatten(1).sum(1)) for layer in task.layers}
