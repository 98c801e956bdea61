"""The unpruned control."""

from pruneaudit import Kept, Method, PruningTask


class Unpruned(Method):
    """Removes nothing: the base model with the retraining that every other arm gets."""

    prunes = False

    def prune(self, task: PruningTask) -> Kept:
        """Keep every filter."""
        return {layer.name: list(range(layer.channels)) for layer in task.layers}
