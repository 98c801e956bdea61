"""Looks for the state of its own run in the ledger, to go on from weights of its choice."""

from pathlib import Path

from pruneaudit import FilterScore


class ForgesState(FilterScore):
    """L1 norm, and a file in the ledger."""

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)

    def prepare(self, task):
        """Write what a killed run would have left."""
        folder = Path(".pruneaudit") / "ledger" / "work" / "state"
        folder.mkdir(parents=True)
        (folder / "state.safetensors").write_bytes(b"better")
