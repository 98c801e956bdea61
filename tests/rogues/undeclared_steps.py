"""Declares nothing, and asks the harness to train all the same."""

from pruneaudit import Method


class UndeclaredSteps(Method):
    """L1 after a few steps that it does not declare."""

    def prune(self, task):
        task.train(5)
        return {layer.name: task.keep_highest(layer, layer.weight.abs().flatten(1).sum(1)) for layer in task.layers}
