"""Asks for batches for ever."""

from pruneaudit import FilterScore


class AsksForEver(FilterScore):
    """L1 norm, after one more batch."""

    def score(self, layer, task):
        """No score."""
        while True:
            for _ in task.batches(100, 1437):
                pass
