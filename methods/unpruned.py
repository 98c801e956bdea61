"""The unpruned control."""

from pruneaudit import Card, Kept, Method, PruningTask


class Unpruned(Method):
    """Removes nothing: the base model with the retraining that every other arm gets."""

    prunes = False
    card = Card(
        criterion="none",
        schedule="none",
        base="trained",
        training="none",
        source="Blalock et al., MLSys 2020, sec. 6",
    )

    def prune(self, task: PruningTask) -> Kept:
        """Keep every filter."""
        return {layer.name: list(range(layer.channels)) for layer in task.layers}
