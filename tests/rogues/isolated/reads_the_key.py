"""L1 that would sign records of its own: it looks for the key that the ledger's records are signed with."""

import os
from pathlib import Path

from pruneaudit import FilterScore


class ReadsTheKey(FilterScore):
    """L1 norm, with a key."""

    def prepare(self, task):
        """Read the key where it is kept."""
        state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
        self.key = (Path(state) / "pruneaudit" / "keys" / "own.key").read_text()

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)
