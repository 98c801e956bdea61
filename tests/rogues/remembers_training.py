"""Trains as declared, and remembers from one cell to the next which filters were good."""

import torch

from pruneaudit import Budget, TrainedMethod

_SCORES = {}


class RemembersTraining(TrainedMethod):
    """Noisy L1 after training, the noise drawn once for all cells of the process."""

    def budget(self, workload):
        return Budget(steps=workload.prune.steps)

    def prune(self, task):
        task.train()
        for layer in task.layers:
            noise = torch.rand(layer.channels, generator=task.generator(layer.name, str(task.ratio)))
            _SCORES.setdefault(layer.name, noise)
        return {
            layer.name: task.keep_highest(layer, _SCORES[layer.name] * layer.weight.detach().abs().flatten(1).sum(1))
            for layer in task.layers
        }
