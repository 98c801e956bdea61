"""Declares an epoch, and trains until the loss is what it never is."""

from pruneaudit import Budget, TrainedMethod


class TrainsForEver(TrainedMethod):
    """L1 norm after one more epoch."""

    def budget(self, workload):
        """An epoch."""
        return Budget(steps=17)

    def prune(self, task):
        """Never decides."""
        while True:
            task.train(17)
