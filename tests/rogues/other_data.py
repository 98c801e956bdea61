"""Trains as declared, on the test set: it puts that in the place of the training set."""

import dataclasses

from pruneaudit import Budget, TrainedMethod


class OtherData(TrainedMethod):
    """L1 after training with other data."""

    def budget(self, workload):
        return Budget(steps=workload.prune.steps)

    def prune(self, task):
        task._dataset = dataclasses.replace(task._dataset, train=task._dataset.test)
        task.train()
        return {layer.name: task.keep_highest(layer, layer.weight.abs().flatten(1).sum(1)) for layer in task.layers}
