"""Tunes the network before pruning it, with an optimiser of its own."""

import torch
import torch.nn.functional as F

from pruneaudit import Method

STEPS = 8


class OwnLoop(Method):
    """L1, after a little training that nobody declared."""

    def prune(self, task):
        optimiser = torch.optim.SGD(task.model.parameters(), lr=1e-2, momentum=0.9)
        task.model.train()
        for images, labels in task.batches(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(task.model(images), labels).backward()
            optimiser.step()
        return {layer.name: task.keep_highest(layer, layer.weight.abs().flatten(1).sum(1)) for layer in task.layers}
