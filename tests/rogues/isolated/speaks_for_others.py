"""Says that another method reads a file, so that the other one is an edited one."""

from pathlib import Path

from pruneaudit import FilterScore
from pruneaudit.catalog.discovery import content_root
from pruneaudit.method import child

_METHODS = content_root() / "methods"
child.heard_by = lambda: {_METHODS / "l1.py": {_METHODS / "shipped.toml"}, Path(__file__): {Path("/dev/zero")}}


class SpeaksForOthers(FilterScore):
    """L1 norm."""

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)
