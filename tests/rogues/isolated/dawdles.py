"""Is never silent for long, asks for little, and comes to no end."""

import time

from pruneaudit import FilterScore


class Dawdles(FilterScore):
    """L1 norm, after one more image."""

    def score(self, layer, task):
        """No score."""
        while True:
            for _ in task.batches(1000, 1):
                time.sleep(0.05)
