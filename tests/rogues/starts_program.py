"""Lets another program do the work."""

import subprocess

from pruneaudit import FilterScore


class StartsProgram(FilterScore):
    """L1, by the leave of a program outside."""

    def prune(self, task):
        subprocess.run(["true"], check=True)
        return super().prune(task)

    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(dim=1)
