"""Declares that it rewrites weights, and trains them by hand."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from trained_by_hand import better

from pruneaudit import FilterScore


class RewritesByTraining(FilterScore):
    """L1 norm, with a "reconstruction" that is training."""

    rewrites = True

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)

    def prune(self, task):
        """Decide, and train."""
        kept = super().prune(task)
        task.model.load_state_dict(better(task))
        return kept
