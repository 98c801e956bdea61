"""Trains a copy to see which filters matter, and leaves the network itself as it was."""

import copy

import torch
import torch.nn.functional as F

from pruneaudit import Method

STEPS = 6


class LooksAhead(Method):
    """L1 of the weights that the network would have after some more training."""

    def prune(self, task):
        future = copy.deepcopy(task.model)
        optimiser = torch.optim.Adam(future.parameters(), lr=1e-3)
        for images, labels in task.batches(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(future(images), labels).backward()
            optimiser.step()
        modules = dict(future.named_modules())
        return {
            layer.name: task.keep_highest(layer, modules[layer.name].weight.abs().flatten(1).sum(1))
            for layer in task.layers
        }
