"""Trains, and chooses by the accuracy on test images after each epoch."""

import math

from pruneaudit import Budget, TrainedMethod


class ReadsItsHistory(TrainedMethod):
    """L1 norm after the epoch that suits."""

    def budget(self, workload):
        """Two epochs."""
        return Budget(steps=34)

    def prune(self, task):
        """Train, look, decide."""
        task.train()
        known = [value for value in task.history.test_accuracy + task.history.validation_accuracy if value == value]
        if known or not all(map(math.isfinite, task.history.train_loss)):
            raise RuntimeError(f"it leaked: {known}")
        return task.keep({layer.name: layer.weight.flatten(1).abs().sum(1) for layer in task.layers})
