"""Declares one step of training, and takes 80 more where no meter looks."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from trained_by_hand import better

from pruneaudit import Budget, TrainedMethod


class OneStepLicence(TrainedMethod):
    """L1 norm after "one step"."""

    rewrites = True

    def budget(self, workload):
        """One step, and a million images for scores."""
        return Budget(steps=1, samples=1_000_000)

    def prune(self, task):
        """Train, decide."""
        task.train()
        task.model.load_state_dict(better(task))
        return task.keep({layer.name: layer.weight.flatten(1).abs().sum(1) for layer in task.layers})
