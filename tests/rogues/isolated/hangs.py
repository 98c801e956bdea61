"""Never answers."""

import time

from pruneaudit import FilterScore


class Hangs(FilterScore):
    """L1 norm, some day."""

    def score(self, layer, task):
        """No score."""
        time.sleep(3600)
