"""Takes of the machine what it can get: memory, room on the disk, or the terminal."""

import tempfile
from pathlib import Path

import torch

from pruneaudit import FilterScore


class TakesTooMuch(FilterScore):
    """L1 norm, where there is room for it."""

    def __init__(self, what="memory"):
        self.what = what

    def parameters(self):
        """Hyper-parameters, some day."""
        what, kept, folder = self.what, [], Path(tempfile.gettempdir())
        number = 0
        while True:
            number += 1
            if what == "memory":
                kept.append(torch.ones(1 << 24))
            elif what == "files":
                (folder / f"{number}").write_bytes(bytes(1 << 20))
            elif what == "one file":
                with (folder / "one").open("ab") as file:
                    file.write(bytes(1 << 20))
            else:
                print("no end " * 1000, flush=True)

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)
