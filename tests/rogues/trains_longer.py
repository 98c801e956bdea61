"""Declares a short pruning stage and takes twice as many steps."""

from pruneaudit import Budget, TrainedMethod


class TrainsLonger(TrainedMethod):
    """L1 after training for twice the declared steps."""

    def budget(self, workload):
        return Budget(steps=workload.prune.steps)

    def prune(self, task):
        task.train(2 * task.steps)
        return {layer.name: task.keep_highest(layer, layer.weight.abs().flatten(1).sum(1)) for layer in task.layers}
