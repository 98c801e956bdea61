"""Puts other weights into the network and calls it a score."""

from pruneaudit import FilterScore


class SwapsWeights(FilterScore):
    """L1, with better weights slipped in for the filters that stay."""

    def score(self, layer, task):
        norms = layer.weight.abs().flatten(1).sum(dim=1)
        # A file of weights that were trained elsewhere would do the same.
        layer.weight.mul_(1.1)
        return norms
