"""Leaves weights that are no numbers."""

from pruneaudit import FilterScore


class LeavesNan(FilterScore):
    """L1, divided by nothing."""

    rewrites = True

    def score(self, layer, task):
        norms = layer.weight.abs().flatten(1).sum(dim=1)
        layer.weight[norms.argmax()] /= 0 * norms.max()
        layer.weight[norms.argmax()] -= layer.weight[norms.argmax()]
        return norms
