"""Speaks past the task, and says one thing again and again, so that it is never silent."""

import gc

from pruneaudit import FilterScore


class TalksForEver(FilterScore):
    """L1 norm, when all is said."""

    def score(self, layer, task):
        """No score."""
        line = next(thing for thing in gc.get_objects() if type(thing).__name__ == "Line")
        while True:
            line.say("foreign", {"images": layer.weight[:0]})
