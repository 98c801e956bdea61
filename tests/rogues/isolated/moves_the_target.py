"""Writes its target, so that it may keep twice as many filters."""

from pruneaudit import FilterScore


class MovesTheTarget(FilterScore):
    """L1 norm, at half the ratio."""

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)

    def prune(self, task):
        """Ask for less, then decide."""
        for layer in task.layers:
            task.target.stay[layer.name] = min(layer.channels - 1, 2 * task.target.stay[layer.name])
        return super().prune(task)
